package cli

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/bttnbd/bttnbd/internal/attach"
	"github.com/bttnbd/bttnbd/internal/units"
)

func newList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list [flags]",
		Short: "List the NBD and ublk devices of this machine",
		Long: `List all NBD and ublk devices that are attached, by bttnbd or by another program.

A device is alive if its server is there, dead if requests wait for one (attach the
image again), and foreign if another program has attached it: the kernel does not
tell whether anybody serves it.`,
		Example:     "  bttnbd list --json",
		Annotations: map[string]string{exitStatus: commonStatus},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("list takes no argument, %q was given", args[0])
			}
			return runList(cmd.OutOrStdout(), asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func runList(stdout io.Writer, asJSON bool) error {
	devices, err := attach.List()
	if err != nil {
		return err
	}
	if asJSON {
		return writeJSON(stdout, struct {
			Schema  int             `json:"schema"`
			Devices []attach.Listed `json:"devices"`
		}{schema, devices})
	}
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "DEVICE\tSIZE\tSTATE\tPID\tSINCE\tSOURCE\tUSED BY")
	for _, d := range devices {
		source, since := d.Source, "-"
		if source == "" {
			source = orDash(d.Backend)
		}
		if d.Since != nil {
			since = d.Since.Local().Format(time.DateTime)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", d.Device, units.Compact(d.Size), d.State, d.PID, since, visible(source), visible(orDash(strings.Join(d.Users, "; "))))
	}
	return w.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
