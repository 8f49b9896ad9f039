// Package tally keeps what scripts/test adds up and shows again at its end: files to
// which each part of the run appends.
package tally

import (
	"errors"
	"os"
)

// Append adds text to the file, which it makes if there is none. Without a path it
// does nothing.
func Append(path, text string) error {
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o666)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
