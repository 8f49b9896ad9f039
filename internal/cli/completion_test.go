package cli

import (
	"os/exec"
	"strings"
	"testing"
)

// completeInBash is what bash offers for the last of words, by the script that the
// program prints, run as bash runs it at a press of the tab key. Where the package
// bash-completion is missing, what the script needs of it is done in its place.
const completeInBash = `
lib=/usr/share/bash-completion/bash_completion
if [[ -e $lib ]]; then
	source $lib
else
	_get_comp_words_by_ref() {
		cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD
	}
	__ltrim_colon_completions() { :; }
fi
compopt() { :; } # outside of a real completion it only complains
source <("$1" completion bash) || exit
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_TYPE=9
COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
"__start_$1"
printf '%s\n' "${COMPREPLY[@]}"
`

// Goal: bash completes commands, flags, and the values that a flag can have; and leaves
// files to itself.
func TestBashCompletion(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, c := range []struct {
		words string // separated by spaces, the last one is to be completed
		want  string // in any spacing
	}{
		{"bttnbd con", "convert"},
		{"bttnbd create --for", "--force --format"},
		{"bttnbd create --format ", "kernel uefi pmemblk"},
		{"bttnbd create --format ue", "uefi"},
		{"bttnbd create --sector-size 41", "4104 4160"},
		{"bttnbd convert --format s", "same"},
		{"bttnbd serve --tls ", "off on require"},
		{"bttnbd serve --log-level e", "error"},
		{"bttnbd info --progress ", "auto always never"},
		{"bttnbd completion ", "bash zsh fish"},
		{"bttnbd attach a", "auto"},
		{"bttnbd version x", ""},
		{"bttnbd create --size ", ""},
		{"bttnbd check disk", ""},
		{"bttcheck --pro", "--progress"},
		{"bttcheck --progress n", "never"},
	} {
		words := strings.Split(c.words, " ")
		cmd := exec.Command("bash", append([]string{"--norc", "-c", completeInBash, "bash"}, words...)...)
		out, err := cmd.Output()
		var got []string
		for line := range strings.Lines(string(out)) { // with what it means behind, if there are several
			if word := strings.Fields(line); len(word) > 0 {
				got = append(got, word[0])
			}
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, %v, want %q", c.words, out, err, c.want)
		}
	}
}

// Goal: what cannot be completed with a word is left to the shell as a file, or as a
// directory, or as nothing.
func TestCompletionDirective(t *testing.T) {
	for _, c := range []struct{ words, want string }{
		{"check ", ":0"},
		{"create ", ":0"},
		{"attach auto ", ":0"},
		{"check --backup ", ":0"},
		{"serve --exports-dir ", ":16"},
		{"detach ", ":4"},
		{"create --size ", ":36"},
	} {
		out, err := exec.Command("bttnbd", append([]string{"__complete"}, strings.Split(c.words, " ")...)...).Output()
		lines := strings.Fields(string(out))
		if err != nil || len(lines) == 0 || lines[len(lines)-1] != c.want {
			t.Errorf("%s: %q, %v, want %s", c.words, out, err, c.want)
		}
	}
}
