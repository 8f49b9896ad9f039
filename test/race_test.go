//go:build race

package clienttest

// raceEnabled makes the binaries be built as the tests are.
const raceEnabled = true
