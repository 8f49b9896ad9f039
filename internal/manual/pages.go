package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bttnbd/bttnbd/internal/cli"
)

// pages are all man pages by file name. source is the top directory.
func pages(source string) (map[string][]byte, error) {
	all := map[string][]byte{}
	bttnbd, bttcheck := cli.Commands()
	addCommand(all, bttnbd, "1")
	addCommand(all, bttcheck, "8")
	for _, d := range documents {
		text, err := os.ReadFile(filepath.Join(source, "docs", d.file))
		if err != nil {
			return nil, err
		}
		all[d.name+"."+d.section] = md2man.Render(append(title(d.name, d.section, d.about), demote(text)...))
	}
	return all, nil
}

// documents are the pages that are documents as well.
var documents = []struct{ name, section, about, file string }{
	{"bttnbd-format", "5", "the Block Translation Table on media", "format.md"},
	{"bttnbd-protocol", "7", "what of the NBD protocol bttnbd speaks", "protocol.md"},
}

// title is the head of a page in the dialect of md2man. It has no date: a page is
// the same whenever it is made.
func title(name, section, about string) []byte {
	return fmt.Appendf(nil, "%% \"%s\" \"%s\" \"\" \"bttnbd\" \"bttnbd manual\"\n# NAME\n%s - %s\n\n", strings.ToUpper(name), section, name, about)
}

// addCommand adds the page of cmd and of all its subcommands.
func addCommand(all map[string][]byte, cmd *cobra.Command, section string) {
	if cmd.Hidden || cmd.Name() == "help" {
		return
	}
	all[pageName(cmd)+"."+section] = md2man.Render(commandPage(cmd, section))
	for _, sub := range cmd.Commands() {
		addCommand(all, sub, section)
	}
}

func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// commandPage is the page of cmd as Markdown, in the order of man-pages(7).
func commandPage(cmd *cobra.Command, section string) []byte {
	var b bytes.Buffer
	b.Write(title(pageName(cmd), section, lowerFirst(cmd.Short)))
	fmt.Fprintf(&b, "# SYNOPSIS\n**%s**%s\n\n", cmd.CommandPath(), synopsis(cmd))
	fmt.Fprintf(&b, "# DESCRIPTION\n%s\n\n", escapeText(cmd.Long))
	if cmd.HasAvailableSubCommands() {
		b.WriteString("# COMMANDS\n")
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() {
				fmt.Fprintf(&b, "**%s**(%s)\n: %s\n\n", pageName(sub), section, escape(sub.Short))
			}
		}
	}
	options(&b, cmd)
	if status := cli.ExitStatus(cmd); status != "" {
		fmt.Fprintf(&b, "# EXIT STATUS\n```\n%s\n```\n\n", status)
	}
	if cmd.Example != "" {
		fmt.Fprintf(&b, "# EXAMPLES\n```\n%s\n```\n\n", cmd.Example)
	}
	fmt.Fprintf(&b, "# SEE ALSO\n%s\n", seeAlso(cmd))
	return b.Bytes()
}

// synopsis is what follows the name of cmd on a command line.
func synopsis(cmd *cobra.Command) string {
	if cmd.HasAvailableSubCommands() && cmd.Use == cmd.Name() {
		return " *COMMAND* [flags] ..."
	}
	return escape(strings.TrimPrefix(cmd.UseLine(), cmd.CommandPath()))
}

// options writes the flags of cmd, each with what stands instead of it when it is
// not given.
func options(b *bytes.Buffer, cmd *cobra.Command) {
	cmd.InitDefaultHelpFlag()
	b.WriteString("# OPTIONS\n")
	cmd.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		name := "**--" + f.Name + "**"
		if f.Shorthand != "" {
			name = "**-" + f.Shorthand + "**, " + name
		}
		if value != "" {
			name += " *" + escape(value) + "*"
		}
		switch f.DefValue {
		case "", "false", "0", "[]", "0s":
		default:
			usage += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(b, "%s\n: %s\n\n", name, escape(usage))
	})
}

// seeAlso names the pages beside that of cmd.
func seeAlso(cmd *cobra.Command) string {
	all := []string{"bttnbd(1)", "bttcheck(8)", "bttnbd-format(5)", "bttnbd-protocol(7)", "nbd-client(8)", "ndctl(1)"}
	var others []string
	for _, p := range all {
		if !strings.HasPrefix(p, pageName(cmd)+"(") {
			name, section, _ := strings.Cut(p, "(")
			others = append(others, "**"+name+"**("+section)
		}
	}
	return strings.Join(others, ", ")
}

// escape keeps what Markdown would take for markup.
func escape(s string) string {
	return strings.NewReplacer("*", `\*`, "_", `\_`, "<", `\<`, "[", `\[`, "`", "\\`").Replace(s)
}

// escapeText is escape for paragraphs. It leaves blocks of code, the lines behind an
// empty one that are indented by four, as they are: there nothing is markup.
func escapeText(s string) string {
	lines := strings.Split(s, "\n")
	empty, code := true, false
	for i, line := range lines {
		blank := strings.TrimSpace(line) == ""
		code = strings.HasPrefix(line, "    ") && (empty || code) || blank && code
		if !code {
			lines[i] = escape(line)
		}
		empty = blank
	}
	return strings.Join(lines, "\n")
}

func lowerFirst(s string) string {
	if s == "" || len(s) > 1 && s[1] >= 'A' && s[1] <= 'Z' {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}
