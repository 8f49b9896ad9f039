//go:build amd64 || arm64

package socket

// Pause does nothing for a fraction of a microsecond, in a way that leaves the core to
// its other thread. It comes between looks at a socket, whose locks the sender needs.
func Pause()
