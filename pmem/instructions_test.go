package pmem

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// instructions are what must, and must not, be in a function's machine code. No
// program can see whether an instruction went past the cache, ordered anything, or
// waited: what a test can do is to look that it is there.
var instructions = []struct {
	arch, function string
	must, mustNot  string // regexps for a line of assembly
	why            string
}{
	{"amd64", "movntCopy", `MOVNTIQ`, `MOV[QLBOU]+\s+[A-Z0-9]+, \d*\(DI\)`, "stores past the cache only: what is left in it is flushed by nobody"},
	{"amd64", "movntLines", `VMOVNTDQ\s+Z0, \(DI\)`, `VMOVDQ\S*\s+Z0, \d*\(DI\)`, "stores past the cache only: what is left in it is flushed by nobody"},
	{"amd64", "movntZero", `MOVNTIQ`, `MOV[QLBOU]+\s+[A-Z0-9]+, \d*\(DI\)`, "stores past the cache only: what is left in it is flushed by nobody"},
	{"amd64", "clwb", `ANDQ\s+\$-64, AX`, `^$`, "begins with the line of the first byte"},
	{"amd64", "clwb", `CLWB\s+\(AX\)`, `^$`, "writes back"},
	{"amd64", "clflushopt", `CLFLUSHOPT\s+\(AX\)`, `^$`, "writes back"},
	{"amd64", "clflush", `CLFLUSH\s+\(AX\)`, `^$`, "writes back"},
	{"amd64", "sfence", `SFENCE`, `^$`, "waits"},
	{"amd64", "(*Region).Store32", `MOVL\s+[A-Z0-9]+, \([A-Z0-9]+\)`, `MOV[BW]\S*\s+[A-Z0-9]+, \d*\([A-Z0-9]+\)|XCHG`, "stores four bytes at once, as a release, which every store here is, and waits for nothing"},
	{"amd64", "(*Region).Store64", `MOVQ\s+[A-Z0-9]+, \([A-Z0-9]+\)`, `MOV[BWL]\s+[A-Z0-9]+, \d*\([A-Z0-9]+\)|XCHG`, "stores eight bytes at once, as a release, which every store here is, and waits for nothing"},
	{"arm64", "(*Region).Store32", `STLRW`, `^$`, "is a release: the second half of a flog record must not pass the first"},
	{"arm64", "(*Region).Store64", `STLR\b`, `^$`, "is a release: the second half of a flog record must not pass the first"},
	{"arm64", "cleanPersistence", `DC\s+CVAP`, `^$`, "cleans"},
	{"arm64", "cleanPersistence", `DSB\s+\$15`, `^$`, "waits until the lines are clean"},
	{"arm64", "cleanCoherency", `DC\s+CVAC`, `^$`, "cleans"},
	{"arm64", "cleanCoherency", `DSB\s+\$15`, `^$`, "waits until the lines are clean"},
	{"arm64", "dsb", `DSB\s+\$15`, `^$`, "waits"},
}

// Goal: the instructions on which durability rests are in what the compiler and
// the assembler make of this package, for both architectures that have them.
func TestInstructions(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package twice")
	}
	gotool, err := exec.LookPath("go")
	if err != nil {
		t.Skipf("no go command here, nothing to ask: %v", err)
	}
	if _, err := os.Stat("words_unsafe.go"); err != nil {
		t.Skipf("the test binary runs away from its source: %v", err)
	}
	code := map[string]map[string][]string{}
	for _, arch := range []string{"amd64", "arm64"} {
		cmd := exec.Command(gotool, "build", "-gcflags=-S", "-asmflags=-S", ".")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("go build for %s: %v\n%s", arch, err, out)
		}
		code[arch] = functions(string(out))
	}
	for _, c := range instructions {
		lines := strings.Join(code[c.arch][c.function], "\n")
		if lines == "" {
			t.Errorf("%s: no code of %s", c.arch, c.function)
			continue
		}
		if !regexp.MustCompile(c.must).MatchString(lines) {
			t.Errorf("%s: %s has no %s; it %s", c.arch, c.function, c.must, c.why)
		}
		if bad := regexp.MustCompile(c.mustNot).FindString(lines); bad != "" {
			t.Errorf("%s: %s has %q; it %s", c.arch, c.function, bad, c.why)
		}
	}
}

var textLine = regexp.MustCompile(`^(\S+) STEXT`)

// functions takes the listing apart: the instructions of each function of this
// package by its name.
func functions(listing string) map[string][]string {
	code := map[string][]string{}
	name := ""
	for line := range strings.SplitSeq(listing, "\n") {
		if m := textLine.FindStringSubmatch(line); m != nil {
			name = m[1][strings.Index(m[1], "pmem.")+len("pmem."):]
			continue
		}
		if columns := strings.SplitN(line, "\t", 3); name != "" && len(columns) == 3 {
			code[name] = append(code[name], columns[2])
		}
	}
	return code
}
