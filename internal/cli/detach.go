package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/bttnbd/bttnbd/internal/attach"
	"github.com/bttnbd/bttnbd/internal/kernel"
)

func newDetach() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "detach [flags] DEVICE",
		Short: "End a block device, /dev/nbdN or /dev/ublkbN",
		Long: `End a block device that bttnbd attach has made, or another program. Returns when
everything is written and the image is closed.

A device that is mounted, swap, or part of another device is refused.`,
		Example: `  bttnbd detach /dev/nbd0
  bttnbd detach /dev/ublkb0`,
		Annotations: map[string]string{exitStatus: commonStatus},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("detach takes one device: bttnbd detach /dev/nbd0, or /dev/ublkb0; bttnbd list shows them")
			}
			return runDetach(cmd.Context(), args[0], force)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "even if it is in use: what is not written yet is lost, and requests fail")
	return cmd
}

func runDetach(ctx context.Context, device string, force bool) error {
	d, err := kernel.ParseDevice(device)
	if err != nil {
		return usagef("%v; bttnbd list shows what is attached", err)
	}
	if d.IsUblk() {
		return attach.DetachUblk(ctx, d, force)
	}
	return attach.Detach(ctx, d, force)
}
