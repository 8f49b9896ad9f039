// Package sandbox takes from the process what it does not need any more once
// everything is open: another user's rights, and sight of the filesystem.
package sandbox
