package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Exit codes of every command but check. 2 is left to Go: an uncaught panic.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 64 // EX_USAGE of sysexits.h
	exitInterrupted = 130
)

// Exit codes of check, those of fsck(8). They are bits.
const (
	fsckRepaired  = 1  // errors corrected
	fsckDamage    = 4  // errors left uncorrected
	fsckFailed    = 8  // operational error: could not check
	fsckUsage     = 16 // usage error
	fsckCancelled = 32 // by a signal
)

// The exit status sections of the commands' help.
const (
	commonStatus = `  0    success
  1    failure
  64   usage error
  130  interrupted`
	serveStatus = `  0    stopped by SIGTERM, SIGINT or SIGHUP, everything flushed; --single: the client left
  1    failure
  64   usage error
  130  stopped by a second signal
  --run: that of the command; 128 and the number of the signal that killed it`
	fsckStatus = `  0    clean
  1    damage repaired, all of it
  4    damage found, or left by a repair
  5    damage repaired in part
  8    could not check
  16   usage error
  32   cancelled`
)

var (
	errInterrupted = errors.New("interrupted")
	// errDamage: check has found damage, and its report has said so.
	errDamage = errors.New("damage found")
	// errRepaired and errPartly: a repair has changed something, and its report says
	// whether damage is left.
	errRepaired = errors.New("damage repaired")
	errPartly   = errors.New("damage repaired in part")
)

// usageError is a mistake on the command line.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// interruptedError is an interrupt that has left something of which the user must know.
type interruptedError struct{ left string }

func (e *interruptedError) Error() string { return errInterrupted.Error() + ": " + e.left }

// Unwrap makes it an interrupt for all who ask.
func (e *interruptedError) Unwrap() error { return errInterrupted }

// interruptLeaves adds to err, if it is an interrupt, what that has left.
func interruptLeaves(err error, format string, args ...any) error {
	if err == nil || !isInterrupt(err) {
		return err
	}
	return &interruptedError{fmt.Sprintf(format, args...)}
}

// exitCode is the only place where an outcome becomes a number.
func exitCode(err error, fsck bool) int {
	var usage *usageError
	var status commandStatus
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		return pick(fsck, fsckUsage, exitUsage)
	case errors.As(err, &status) && err.Error() == status.Error(): // and nothing else went wrong
		return int(status)
	case isInterrupt(err):
		return pick(fsck, fsckCancelled, exitInterrupted)
	case errors.Is(err, errDamage):
		return fsckDamage
	case errors.Is(err, errRepaired):
		return fsckRepaired
	case errors.Is(err, errPartly):
		return fsckRepaired | fsckDamage
	}
	return pick(fsck, fsckFailed, exitFailure)
}

func pick(fsck bool, ifFsck, otherwise int) int {
	if fsck {
		return ifFsck
	}
	return otherwise
}

func isInterrupt(err error) bool {
	return errors.Is(err, errInterrupted) || errors.Is(err, context.Canceled)
}

// errorLine is what to print for err: one line whatever it holds, "" for nothing.
func errorLine(err error) string {
	var status commandStatus
	var left *interruptedError
	switch {
	case err == nil, errors.Is(err, errDamage), errors.Is(err, errRepaired), errors.Is(err, errPartly):
		return ""
	case errors.As(err, &status) && err.Error() == status.Error():
		return ""
	case errors.As(err, &left):
		return left.Error()
	case isInterrupt(err):
		return errInterrupted.Error()
	}
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
