package cli

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/bttnbd/bttnbd/pmem"
)

type versionOptions struct {
	json bool
}

func newVersion() *cobra.Command {
	var o versionOptions
	cmd := &cobra.Command{
		Use:         "version [flags]",
		Short:       "Print the version of this program and what it was built from",
		Example:     "  bttnbd version --json",
		Annotations: map[string]string{exitStatus: commonStatus},
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("version takes no argument, %q was given", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runVersion(cmd.OutOrStdout(), o)
		},
	}
	cmd.Flags().BoolVar(&o.json, "json", false, "print one JSON object")
	return cmd
}

// build is what a binary knows about itself.
type build struct {
	Schema   int    `json:"schema"`
	Version  string `json:"version"`  // of the module, "(devel)" for a working tree
	Revision string `json:"revision"` // commit, "" when not built from a repository
	Modified bool   `json:"modified"` // the working tree differed from the commit
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
	Flush    string `json:"flush"` // what makes stores to persistent memory durable here
}

func runVersion(stdout io.Writer, o versionOptions) error {
	b := thisBuild()
	if o.json {
		return writeJSON(stdout, b)
	}
	_, err := fmt.Fprintf(stdout, "bttnbd %v\n", b)
	return err
}

// String is the build on one line, without the name of the program.
func (b build) String() string {
	revision := ""
	if b.Revision != "" {
		revision = " revision " + b.Revision
	}
	if b.Modified {
		revision += ", modified"
	}
	return fmt.Sprintf("%s%s (%s %s/%s, %s)", b.Version, revision, b.Go, b.OS, b.Arch, b.Flush)
}

func thisBuild() build {
	b := build{Schema: schema, Version: "unknown", Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, Flush: pmem.Instructions()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.Version = info.Main.Version
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}
