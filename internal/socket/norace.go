//go:build !race

package socket

func received(uintptr) {}

func sending(uintptr) {}
