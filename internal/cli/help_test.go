package cli

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Goal: every command there is explains itself: what it does, by examples, and what its
// exit status means; and each example is of that command.
func TestHelpOfEveryCommand(t *testing.T) {
	bttnbd, bttcheck := Commands()
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		var b strings.Builder
		cmd.SetOut(&b)
		if err := cmd.Help(); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"\nExamples:\n", "\nExit status:\n  0 ", "Usage:\n  " + cmd.CommandPath()} {
			if !strings.Contains(b.String(), want) {
				t.Errorf("%s --help does not have %q", cmd.CommandPath(), want)
			}
		}
		for line := range strings.Lines(b.String()) {
			if strings.Contains(line, "--") && utf8.RuneCountInString(line) > helpWidth+1 {
				t.Errorf("%s --help has a line of more than %d columns: %s", cmd.CommandPath(), helpWidth, line)
			}
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if name, _ := pflag.UnquoteUsage(f); name != strings.ToUpper(name) && !strings.Contains(name, "|") || len(name) > 30 {
				t.Errorf("%s --%s takes a %q: name what it takes, in capitals", cmd.CommandPath(), f.Name, name)
			}
		})
		if !strings.Contains(cmd.Example, cmd.Name()) {
			t.Errorf("%s: the examples are of something else: %s", cmd.CommandPath(), cmd.Example)
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(bttnbd)
	walk(bttcheck)
}
