package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bttnbd/bttnbd/internal/attach"
)

// shells are those that completion knows, in the order of cobra's generators.
var shells = []string{"bash", "zsh", "fish"}

func newCompletion() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the script that completes command lines in a shell",
		Long: `Print the script with which a shell completes commands, flags, their values, and
devices. Put it where the shell looks, or source it:

    bash  /usr/share/bash-completion/completions/bttnbd, and the package bash-completion
    zsh   a directory of $fpath, as _bttnbd
    fish  /usr/share/fish/vendor_completions.d/bttnbd.fish

bttcheck has a script of its own: bttcheck completion SHELL.`,
		Example: `  source <(bttnbd completion bash)
  source <(bttcheck completion bash)
  bttnbd completion fish >~/.config/fish/completions/bttnbd.fish`,
		Annotations: map[string]string{exitStatus: commonStatus},
		ValidArgs:   shells,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return usagef("no shell given: choose %s", strings.Join(shells, " or "))
			case len(args) > 1:
				return usagef("completion takes one shell, %q is one too many", args[1])
			case !slices.Contains(shells, args[0]):
				return usagef("no completion for %q: choose %s", args[0], strings.Join(shells, " or "))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(out, true)
			case "zsh":
				return root.GenZshCompletion(out)
			}
			return root.GenFishCompletion(out, true)
		},
	}
}

// chooser is a value of a flag that is one of a few words.
type chooser interface{ choices() []string }

func (c *choiceFlag) choices() []string { return c.allowed }

// choices are those of a namespace; a pool has any.
func (s *sectorFlag) choices() []string { return namespaceSectors }

// addCompletions tells cobra of every command below root what its flags and arguments
// can be. What is not told is completed as a file, by the shell's own means.
func addCompletions(root *cobra.Command) {
	root.InitDefaultHelpFlag()
	root.Flags().VisitAll(func(f *pflag.Flag) { completeFlag(root, f) })
	switch root.Name() {
	case "detach":
		root.ValidArgsFunction = firstArgument(attachedDevices)
	case "attach":
		root.ValidArgsFunction = firstArgument(freeDevices)
	case "list", "version":
		root.ValidArgsFunction = cobra.NoFileCompletions
	}
	for _, cmd := range root.Commands() {
		addCompletions(cmd)
	}
}

// completeFlag completes the words that a flag can have, and keeps file names from
// flags that take none.
func completeFlag(cmd *cobra.Command, f *pflag.Flag) {
	var words []string
	switch value := f.Value.(type) {
	case chooser:
		words = value.choices()
	default:
		name, _ := pflag.UnquoteUsage(f)
		switch {
		case name == "FILE" || name == "string":
			return
		case name == "DIR":
			cobra.CheckErr(cmd.MarkFlagDirname(f.Name))
			return
		case name == "ADDR":
			words = []string{"unix:", "tcp:"}
			if f.Name == "listen" {
				words = append(words, "vsock:", "systemd", "fd:")
			}
			cobra.CheckErr(cmd.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace)))
			return
		case name == "" || name == "COMMAND":
			return
		}
	}
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveKeepOrder)))
}

// firstArgument completes the first argument with what list finds, the others with
// files.
func firstArgument(list func() []string) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return list(), cobra.ShellCompDirectiveNoFileComp
	}
}

// attachedDevices are the NBD devices in use, each with what it is.
func attachedDevices() (list []string) {
	devices, err := attach.List()
	if err != nil {
		return nil
	}
	for _, d := range devices {
		list = append(list, cobra.CompletionWithDesc(d.Device, fmt.Sprintf("%s %s", d.State, d.Source)))
	}
	return list
}

// freeDevices are auto, and those NBD devices that nobody uses; a device in use has a
// pid in sysfs.
func freeDevices() []string {
	list := []string{cobra.CompletionWithDesc("auto", "a free device")}
	found, _ := filepath.Glob("/sys/block/nbd*")
	for _, path := range found {
		if _, err := os.Stat(filepath.Join(path, "pid")); err != nil {
			list = append(list, "/dev/"+filepath.Base(path))
		}
	}
	return list
}
