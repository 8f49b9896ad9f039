package generated

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Goal: what was written is current; what was changed, has gone, or is nobody's is told.
func TestStale(t *testing.T) {
	dir := t.TempDir()
	all := map[string][]byte{"changed": []byte("a"), "gone": []byte("b"), "same": []byte("c")}
	if err := write(dir, func(string) (map[string][]byte, error) { return all, nil }); err != nil {
		t.Fatal(err)
	}
	if list, err := Stale(dir, all); err != nil || len(list) > 0 {
		t.Errorf("just written: %q, %v", list, err)
	}
	for name, text := range map[string]string{"changed": "A", "nobody's": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "gone")); err != nil {
		t.Fatal(err)
	}
	list, err := Stale(dir, all)
	var names []string
	for _, line := range list {
		name, _, _ := strings.Cut(line, " ")
		names = append(names, name)
	}
	if err != nil || !slices.Equal(names, []string{"changed", "gone", "nobody's"}) {
		t.Errorf("%q, %v", list, err)
	}
}
