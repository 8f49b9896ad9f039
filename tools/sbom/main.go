// Command sbom prints a software bill of materials (CycloneDX, JSON) of Go binaries:
// what the linker noted in them, and nothing else. It is in the module of the tools,
// so that its library is none of the project's dependencies.
//
//	go run -C tools ./sbom /path/of/binary…
package main

import (
	"cmp"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

func main() {
	if err := write(os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

// write prints the SBOM of all binaries together. They must be of one module, one
// version and one Go.
func write(w io.Writer, binaries []string) error {
	if len(binaries) == 0 {
		return errors.New("no binary given")
	}
	var first *debug.BuildInfo
	modules := map[string]*debug.Module{}
	for _, path := range binaries {
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		first = cmp.Or(first, info)
		if info.Main.Version != first.Main.Version || info.GoVersion != first.GoVersion {
			return fmt.Errorf("%s: %s by %s, but %s is %s by %s", path,
				info.Main.Version, info.GoVersion, binaries[0], first.Main.Version, first.GoVersion)
		}
		for _, m := range info.Deps {
			if m.Replace != nil {
				return fmt.Errorf("%s: %s is replaced", path, m.Path)
			}
			modules[m.Path] = m
		}
	}
	return cdx.NewBOMEncoder(w, cdx.BOMFileFormatJSON).SetPretty(true).Encode(materials(first, modules))
}

// materials has no serial number and no time: the same binaries have the same SBOM.
// The checksum of a module is that of go.sum, which is the hash of no file.
func materials(info *debug.BuildInfo, modules map[string]*debug.Module) *cdx.BOM {
	program := component(cdx.ComponentTypeApplication, info.Main.Path, info.Main.Version)
	std := component(cdx.ComponentTypeLibrary, "std", strings.TrimPrefix(info.GoVersion, "go"))
	parts := []cdx.Component{std}
	for _, path := range slices.Sorted(maps.Keys(modules)) {
		c := component(cdx.ComponentTypeLibrary, path, modules[path].Version)
		c.Properties = &[]cdx.Property{{Name: "go.sum", Value: modules[path].Sum}}
		parts = append(parts, c)
	}
	refs := make([]string, len(parts))
	for i, c := range parts {
		refs[i] = c.BOMRef
	}
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Component: &program}
	bom.Components = &parts
	bom.Dependencies = &[]cdx.Dependency{{Ref: program.BOMRef, Dependencies: &refs}}
	return bom
}

func component(kind cdx.ComponentType, module, version string) cdx.Component {
	url := "pkg:golang/" + module + "@" + strings.ReplaceAll(version, "+", "%2B")
	return cdx.Component{BOMRef: url, Type: kind, Name: module, Version: version, PackageURL: url}
}
