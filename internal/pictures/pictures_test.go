package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/bttnbd/bttnbd/internal/generated"
)

// The pictures in docs/pictures are those that the source makes today.
func TestPicturesAreCurrent(t *testing.T) {
	all, err := pictures("../..")
	if err != nil {
		t.Fatal(err)
	}
	stale, err := generated.Stale("../../docs/pictures", all)
	if err != nil || len(stale) > 0 {
		t.Errorf("docs/pictures: %q, %v: run make pictures", stale, err)
	}
	for name, want := range all {
		for d := xml.NewDecoder(bytes.NewReader(want)); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
}

// Arrows that others imply go, all others stay, and every arrow points down.
func TestGraph(t *testing.T) {
	graph := map[string][]string{"a": {"b", "c", "d"}, "b": {"d"}, "c": nil, "d": nil}
	reduced := reduce(graph)
	if !slices.Equal(reduced["a"], []string{"b", "c"}) || !slices.Equal(reduced["b"], []string{"d"}) {
		t.Errorf("reduced to %v", reduced)
	}
	rows := levels(reduced)
	if len(rows) != 3 || !slices.Equal(rows[2], []string{"a"}) || !slices.Equal(rows[1], []string{"b"}) || len(rows[0]) != 2 {
		t.Errorf("rows are %v", rows)
	}
}
