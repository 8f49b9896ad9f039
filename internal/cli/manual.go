package cli

import "github.com/spf13/cobra"

// Commands returns bttnbd and bttcheck as [Main] runs them, for who documents them.
func Commands() (bttnbd, bttcheck *cobra.Command) {
	bttnbd, bttcheck = NewRoot(), NewCheck("bttcheck")
	settle(bttnbd)
	settle(bttcheck)
	return bttnbd, bttcheck
}

// ExitStatus returns the exit codes of cmd, one a line, "" where it does not
// explain them.
func ExitStatus(cmd *cobra.Command) string { return cmd.Annotations[exitStatus] }
