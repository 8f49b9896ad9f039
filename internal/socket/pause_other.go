//go:build !amd64 && !arm64

package socket

// Pause does nothing. On the processors that we know it takes its time.
func Pause() {}
