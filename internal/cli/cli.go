// Package cli is the command tree of bttnbd and bttcheck. Each command is an
// options struct, a function that puts it on flags, and a run function that
// takes a context and writers and returns an error. What a command does beyond
// flags and text belongs in a package of its own.
package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/bttnbd/bttnbd/internal/units"
)

// NewRoot is the command bttnbd.
func NewRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "bttnbd",
		Short: "Atomic blocks on persistent memory or a file, served over NBD",
		Long: `bttnbd makes, serves and checks Block Translation Tables (BTT): a block written
through one is, after any crash, wholly old or wholly new.`,
		Example: `  bttnbd create --size 1G disk.img
  bttnbd serve --listen unix:/run/disk.sock disk.img
  nbdinfo 'nbd+unix:///?socket=/run/disk.sock'
  bttnbd check disk.img`,
		Annotations:                map[string]string{exitStatus: commonStatus},
		SuggestionsMinimumDistance: 2,
		Args:                       cobra.ArbitraryArgs, // RunE reports what is no command, on one line
		RunE: func(cmd *cobra.Command, args []string) error {
			return noSuchCommand(cmd, args)
		},
	}
	root.AddCommand(newCreate(), newServe(), newInfo(), NewCheck("check"), newConvert(), newGrow(), newAttach(), newDetach(), newList(), newTop(), newVersion(), newCompletion())
	return root
}

// settle gives the root the behaviour that all commands below it inherit.
func settle(root *cobra.Command) {
	root.SilenceErrors = true
	root.SilenceUsage = true
	root.CompletionOptions.DisableDefaultCmd = true // ours is newCompletion
	root.SetFlagErrorFunc(flagError)
	wrapped := strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages", fmt.Sprintf(".FlagUsagesWrapped %d", helpWidth))
	root.SetUsageTemplate(wrapped + exitStatusTemplate)
	root.SetHelpCommand(newHelp())
	root.Version = thisBuild().String()
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.InitDefaultVersionFlag()
	root.Flags().Lookup("version").Usage = "print the version and what it was built from"
	addCompletions(root)
}

// helpWidth is how many columns the flags take in a help.
const helpWidth = 100

// exitStatusTemplate prints what a command says under [exitStatus].
const exitStatusTemplate = `{{with index .Annotations "` + exitStatus + `"}}
Exit status:
{{.}}
{{end}}`

// exitStatus is the annotation of a command that explains its exit codes.
const exitStatus = "exit status"

// newHelp is the command help, which exists where there are others.
func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:         "help [COMMAND]",
		Short:       "Show the help of a command",
		Long:        "Show what a command does, its flags, examples, and what its exit status means.",
		Example:     "  bttnbd help serve",
		Annotations: map[string]string{exitStatus: commonStatus},
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			switch {
			case err != nil, len(rest) > 0 && about == cmd.Root():
				return noSuchCommand(cmd.Root(), args)
			case len(rest) > 0:
				return usagef("%q is no command of %s: see %s --help", rest[0], about.CommandPath(), about.CommandPath())
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// rootWords is for a root that has no commands, but takes an image: there too "help"
// is --help and "completion SHELL" is that command, unless a file has the name.
func rootWords(root *cobra.Command, args []string) []string {
	if root.HasSubCommands() || len(args) == 0 {
		return args
	}
	if _, err := os.Lstat(args[0]); err == nil {
		return args
	}
	switch {
	case args[0] == "help" && len(args) == 1:
		return []string{"--help"}
	case args[0] == "completion":
		root.AddCommand(newCompletion())
	}
	return args
}

// Main runs root with args and returns the code to exit with. SIGINT, SIGTERM and
// SIGHUP end the context of the command; a second one ends the process. A command may
// take SIGHUP for itself, see takeHangups.
func Main(root *cobra.Command, args []string, stdout, stderr io.Writer) int {
	settle(root)
	args = rootWords(root, args)
	ctx, stop := withSignals(context.Background(), interruptCode(root, args))
	defer stop()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if line := errorLine(err); line != "" {
		fmt.Fprintf(stderr, "%s: %s\n", root.Name(), visible(line)) // it may have the path of anybody
	}
	return exitCode(err, cmd.Annotations[exitStatus] == fsckStatus)
}

// interruptCode is what a second signal ends the command of args with.
func interruptCode(root *cobra.Command, args []string) int {
	cmd, _, err := root.Find(args)
	return exitCode(errInterrupted, err == nil && cmd.Annotations[exitStatus] == fsckStatus)
}

// withSignals is a context that the first signal ends; the second ends the process,
// with the code.
func withSignals(parent context.Context, code int) (ctx context.Context, stop func()) {
	signals := make(chan os.Signal, 2)
	h := &hangups{signals: signals, came: make(chan os.Signal, 1)}
	ctx, cancel := context.WithCancelCause(context.WithValue(parent, hangupsKey{}, h))
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup(1)
		signal.Notify(signals, syscall.SIGHUP)
	}
	go func() {
		for ending := false; ; {
			sig := <-signals
			switch {
			case sig == syscall.SIGHUP && h.taken.Load():
				h.pass(sig)
			case ending:
				os.Exit(code)
			default:
				ending = true
				cancel(errInterrupted)
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}

// hangups are where SIGHUP goes when the command has taken it.
type hangups struct {
	signals chan<- os.Signal
	taken   atomic.Bool
	came    chan os.Signal
}

type hangupsKey struct{}

// takeHangups is for a command that reloads on SIGHUP instead of ending. Under nohup(1)
// it reloads as well: what kept it from ending would otherwise keep it from reloading.
func takeHangups(ctx context.Context) <-chan os.Signal {
	h, ok := ctx.Value(hangupsKey{}).(*hangups)
	if !ok {
		return nil
	}
	h.taken.Store(true)
	signal.Notify(h.signals, syscall.SIGHUP)
	return h.came
}

// pass leaves out what adds nothing: a signal while another one waits.
func (h *hangups) pass(sig os.Signal) {
	select {
	case h.came <- sig:
	default:
	}
}

// noSuchCommand is what the root itself does when no command was recognised.
func noSuchCommand(root *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usagef("no command given: see %s --help", root.Name())
	}
	if similar := root.SuggestionsFor(args[0]); len(similar) > 0 {
		return usagef("unknown command %q: did you mean %s?", args[0], strings.Join(similar, " or "))
	}
	if _, err := os.Stat(args[0]); err == nil {
		word := shellWord(args[0])
		return usagef("%q is a file, not a command: did you mean %s info %s, or %s serve --listen unix:%s.sock %s?",
			args[0], root.Name(), word, root.Name(), socketName(args[0]), word)
	}
	return usagef("unknown command %q: see %s --help", args[0], root.Name())
}

// onePath is the argument check of the commands that take one image.
func onePath(cmd *cobra.Command, args []string) error {
	switch len(args) {
	case 0:
		return usagef("no image given: %s", cmd.UseLine())
	case 1:
		return nil
	}
	if _, err := units.ParseSize(args[1]); err == nil && len(args) == 2 && cmd.Flags().Lookup("size") != nil {
		return usagef("%q is one too many: did you mean %s --size %s %s?", args[1], cmd.CommandPath(), args[1], shellWord(args[0]))
	}
	return usagef("%d arguments given, %q is one too many: %s", len(args), args[1], cmd.UseLine())
}
