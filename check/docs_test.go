package check

import (
	"os"
	"regexp"
	"slices"
	"testing"
)

func TestKindsAreDocumented(t *testing.T) {
	// Goal: docs/check.md has a line for every code, and for no other, in their order.
	page, err := os.ReadFile("../docs/check.md")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z]+-[a-z-]+)` \\|").FindAllSubmatch(page, -1) {
		got = append(got, string(m[1]))
	}
	if !slices.Equal(got, kindNames[:]) {
		t.Errorf("documented %v, want %v", got, kindNames)
	}
}
