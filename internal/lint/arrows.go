package lint

import (
	"slices"
	"strconv"
	"strings"
)

const module = "github.com/bttnbd/bttnbd"

// Third-party modules, by the names used in the table below.
const (
	cobra     = "github.com/spf13/cobra"
	pflag     = "github.com/spf13/pflag"
	systemd   = "github.com/coreos/go-systemd/v22"
	porcupine = "github.com/anishathalye/porcupine"
	landlock  = "github.com/landlock-lsm/go-landlock"
	toml      = "github.com/pelletier/go-toml/v2"
	vsock     = "github.com/mdlayher/vsock"
	testkit   = "github.com/rogpeppe/go-internal"
	md2man    = "github.com/cpuguy83/go-md2man/v2"
	uuid      = "github.com/google/uuid"
	kmod      = "github.com/pmorjan/kmod"
	genetlink = "github.com/mdlayher/genetlink"
	netlink   = "github.com/mdlayher/netlink"
	zstd      = "github.com/klauspost/compress"
	xz        = "github.com/ulikunitz/xz"
	prom      = "github.com/prometheus/client_golang"
	xnet      = "golang.org/x/net"
	xsys      = "golang.org/x/sys"
	xtime     = "golang.org/x/time"
	zerolog   = "github.com/rs/zerolog"
	cyclonedx = "github.com/CycloneDX/cyclonedx-go"
)

// anything of ours, in an imports list.
const anything = "*"

// imports is what a package may import besides the standard library: packages of
// ours by directory, modules of others by path.
type imports struct {
	code  []string
	tests []string // in its test files, in addition
}

// arrows is the package graph of docs/design.md. A package that is not here has no
// place in the graph yet: add it with the fewest arrows that do.
//
// check never imports btt, not even in its tests: one bug must not blind both.
var arrows = map[string]imports{
	"layout":        {code: []string{uuid}},
	"pmem":          {code: []string{xsys}},
	"pmem/pmemtest": {code: []string{"pmem"}},
	"btt":           {code: []string{"layout", "pmem", uuid}, tests: []string{"pmem/pmemtest"}},
	"check":         {code: []string{"layout", "pmem", uuid}},
	"nbd":           {code: []string{"internal/socket", xtime, zerolog}, tests: []string{"nbd/nbdtest"}},
	"nbd/nbdtest":   {code: []string{"nbd"}},

	"internal/convert": {
		code:  []string{"btt", "layout", "pmem", uuid, xsys},
		tests: []string{"check", "pmem/pmemtest"},
	},
	"internal/monitor": {
		code:  []string{"btt", "nbd", "internal/units", prom, xnet, xtime, zerolog},
		tests: []string{"nbd/nbdtest", "pmem"},
	},
	"internal/sandbox": {code: []string{landlock}},
	"internal/kernel": {
		code:  []string{"nbd", kmod, genetlink, netlink, xsys, xz, zstd},
		tests: []string{"nbd/nbdtest"},
	},
	"internal/attach": {
		code:  []string{"internal/kernel", "internal/socket", "internal/ublk", "nbd", xsys, zerolog},
		tests: []string{"nbd/nbdtest"},
	},
	"internal/units":     {},
	"internal/ublk":      {code: []string{"nbd", xsys}, tests: []string{"nbd/nbdtest"}},
	"internal/socket":    {code: []string{xsys}},
	"internal/draw":      {code: []string{"check", "internal/units"}},
	"internal/report":    {code: []string{"check", "layout", "internal/units"}, tests: []string{"btt", "pmem", uuid}},
	"internal/signature": {code: []string{"layout"}, tests: []string{uuid}},
	"internal/cli": {
		code:  []string{anything, cobra, pflag, systemd, toml, uuid, vsock, xsys, zerolog},
		tests: []string{testkit},
	},
	"cmd/bttnbd":   {code: []string{"internal/cli"}},
	"cmd/bttcheck": {code: []string{"internal/cli"}},

	"fuzz":                {tests: []string{anything, uuid}},
	"test":                {tests: []string{"internal/linear", "nbd/nbdtest"}}, // its tests know the binaries only
	"internal/bench":      {code: []string{"btt", "layout", "pmem", uuid, xsys}},
	"internal/linear":     {tests: []string{porcupine}},
	"internal/lint":       {},
	"internal/generated":  {},
	"internal/manual":     {code: []string{"internal/cli", "internal/generated", cobra, pflag, md2man}},
	"internal/mutate":     {code: []string{"internal/tally"}},
	"internal/pictures":   {code: []string{"internal/generated", "internal/lint", "layout"}},
	"internal/tally":      {},
	"internal/testreport": {code: []string{"internal/tally"}},

	"internal/vm":       {code: []string{xsys}},
	"internal/vm/vmrun": {code: []string{"internal/vm"}},
	"test/vm":           {tests: []string{"internal/vm", "nbd/nbdtest", "test/vm/workload"}},
	"test/vm/guest":     {code: []string{"test/vm/workload"}},
	"test/vm/workload":  {},

	"tools/sbom": {code: []string{cyclonedx}}, // of the module in tools
}

// Arrows are the packages of ours that each package may import outside its tests, "*"
// meaning any.
func Arrows() map[string][]string {
	all := map[string][]string{}
	for p, in := range arrows {
		for _, q := range in.code {
			if _, ours := arrows[q]; ours || q == anything {
				all[p] = append(all[p], q)
			}
		}
	}
	return all
}

func (in imports) allow(imported string, test bool) bool {
	allowed := in.code
	if test {
		allowed = slices.Concat(in.code, in.tests)
	}
	if ours, ok := strings.CutPrefix(imported, module+"/"); ok {
		return slices.Contains(allowed, ours) || slices.Contains(allowed, anything)
	}
	return slices.ContainsFunc(allowed, func(m string) bool {
		return imported == m || strings.HasPrefix(imported, m+"/")
	})
}

// wrongArrows finds imports that the table of arrows does not have.
func wrongArrows(tree []source) (found []finding) {
	for _, s := range tree {
		if !s.isGo() {
			continue
		}
		in, ok := arrows[s.dir()]
		if !ok {
			found = append(found, finding{s.path, 0, "package " + s.dir() + " has no line in the table of arrows"})
			continue
		}
		for _, spec := range s.syntax.Imports {
			imported, _ := strconv.Unquote(spec.Path.Value) // the parser saw to it
			own := imported == module+"/"+s.dir()           // an external test package
			standard := !strings.Contains(strings.SplitN(imported, "/", 2)[0], ".")
			if standard || own || in.allow(imported, s.isTest()) {
				continue
			}
			found = append(found, s.at(spec.Pos(), "%s must not import %s", s.dir(), imported))
		}
	}
	return found
}
