package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
)

// Goal: the counts of a run are those of its events, and each kind of failure
// (a test, a build, a package outside its tests) is counted once and shown.
func TestSummarize(t *testing.T) {
	tests := map[string]struct {
		in   string
		want result
		show []string // must be in the report
		hide []string // must not
	}{
		"pass": {
			in: `{"Action":"output","Package":"m/a","Test":"TestX","Output":"noise\n"}
{"Action":"pass","Package":"m/a","Test":"TestX/sub"}
{"Action":"pass","Package":"m/a","Test":"TestX"}
{"Action":"output","Package":"m/a","Output":"ok  \tm/a\t0.1s\n"}
{"Action":"pass","Package":"m/a"}`,
			want: result{passed: 2},
			show: []string{"ok  \tm/a\t0.1s"},
			hide: []string{"noise"},
		},
		"fail": {
			in: `{"Action":"output","Package":"m/a","Test":"TestX","Output":"    x_test.go:7: got 1\n"}
{"Action":"fail","Package":"m/a","Test":"TestX"}
{"Action":"output","Package":"m/a","Output":"FAIL\tm/a\t0.1s\n"}
{"Action":"fail","Package":"m/a"}`,
			want: result{failed: 1},
			show: []string{"got 1", "FAIL\tm/a"},
		},
		"skip": {
			in: `{"Action":"output","Package":"m/a","Test":"TestX","Output":"=== RUN   TestX\n"}
{"Action":"output","Package":"m/a","Test":"TestX","Output":"    x_test.go:7: no fio\n"}
{"Action":"skip","Package":"m/a","Test":"TestX"}
{"Action":"pass","Package":"m/a"}`,
			want: result{skipped: 1},
			show: []string{"SKIP\tm/a TestX\tx_test.go:7: no fio"},
		},
		"does not compile": {
			in: `{"ImportPath":"m/a","Action":"build-output","Output":"a.go:1: syntax error\n"}
{"ImportPath":"m/a","Action":"build-fail"}
{"Action":"output","Package":"m/a","Output":"FAIL\tm/a [build failed]\n"}
{"Action":"fail","Package":"m/a","FailedBuild":"m/a"}`,
			want: result{failed: 1},
			show: []string{"syntax error", "[build failed]"},
		},
		"panics outside the tests": {
			in: `{"Action":"output","Package":"m/a","Output":"panic: boom\n"}
{"Action":"fail","Package":"m/a"}`,
			want: result{failed: 1},
			show: []string{"boom"},
		},
		"dies in a test": {
			in: `{"Action":"output","Package":"m/a","Test":"TestX","Output":"fatal error: stack\n"}
{"Action":"fail","Package":"m/a"}`,
			want: result{failed: 1},
			show: []string{"fatal error: stack"},
		},
		"not JSON": {
			in:   `go: cannot find main module`,
			show: []string{"cannot find main module"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var w, bad strings.Builder
			got, err := summarize(strings.NewReader(tt.in), &w, &bad)
			if err != nil {
				t.Fatal(err)
			}
			if got.String() != tt.want.String() {
				t.Errorf("counts %v, want %v", got, tt.want)
			}
			if failed := tt.want.failed > 0; strings.Contains(bad.String(), tt.show[0]) != failed {
				t.Errorf("%q among the failures: %t, want %t", tt.show[0], !failed, failed)
			}
			for _, s := range tt.show {
				if !strings.Contains(w.String(), s) {
					t.Errorf("report lacks %q:\n%s", s, w.String())
				}
			}
			for _, s := range tt.hide {
				if strings.Contains(w.String(), s) {
					t.Errorf("report shows %q:\n%s", s, w.String())
				}
			}
		})
	}
}

// Goal: a second try is given to few tests of real programs, and to nothing else.
func TestAgain(t *testing.T) {
	fail := func(pkg, test string) string {
		return fmt.Sprintf("{\"Action\":\"fail\",\"Package\":%q,\"Test\":%q}\n", pkg, test)
	}
	end := func(pkg string) string { return fmt.Sprintf("{\"Action\":\"fail\",\"Package\":%q}\n", pkg) }
	tests := map[string]struct {
		in   string
		want []string
	}{
		"none failed":         {`{"Action":"pass","Package":"m/test","Test":"TestX"}`, nil},
		"one, with a subtest": {fail("m/test", "TestX/sub") + fail("m/test", "TestX") + end("m/test"), []string{"m/test TestX\n"}},
		"one, in a guest":     {fail("m/test/vm", "TestX") + end("m/test/vm"), []string{"m/test/vm TestX\n"}},
		"a proof":             {fail("m/test", "TestKill") + end("m/test"), nil},
		"three":               {fail("m/test", "TestX") + fail("m/test", "TestY") + fail("m/test", "TestZ") + end("m/test"), nil},
		"one of another too":  {fail("m/test", "TestX") + end("m/test") + fail("m/btt", "TestY") + end("m/btt"), nil},
		"a panic too":         {fail("m/test", "TestX") + end("m/test") + end("m/btt"), nil},
		"a panic":             {end("m/test"), nil},
		"a panic behind one":  {fail("m/test", "TestX") + `{"Action":"output","Package":"m/test","Test":"TestY","Output":"panic: boom\\n"}` + "\n" + fail("m/test", "TestY") + end("m/test"), nil},
		"out of time":         {fail("m/test", "TestX") + `{"Action":"run","Package":"m/test","Test":"TestY"}` + "\n" + end("m/test"), nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r, err := summarize(strings.NewReader(tt.in), io.Discard, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			if got := r.again(); !slices.Equal(got, tt.want) {
				t.Errorf("again: %q, want %q", got, tt.want)
			}
		})
	}
}
