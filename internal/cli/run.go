package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/rs/zerolog"
)

// commandStatus is the exit status of the command of --run, where it is not 0.
type commandStatus int

func (s commandStatus) Error() string { return fmt.Sprintf("the command ended with status %d", int(s)) }

// command is the command of --run while it runs; nil where there is none.
type command struct {
	*exec.Cmd
	ended chan struct{}
}

// privateSocket is where to listen for one command, when nothing else is said: a
// unix socket in a directory that only its owner enters.
func (s *service) privateSocket() (listenAddr, error) {
	dir, err := os.MkdirTemp("", "bttnbd")
	if err != nil {
		return listenAddr{}, err
	}
	s.private = dir
	path := filepath.Join(dir, "nbd.sock")
	return parseListenAddr("unix:" + path)
}

// startCommand starts the command of --run, whose environment tells how to connect
// as that of nbdkit does.
func (s *service) startCommand() (*command, error) {
	if s.run == "" {
		return nil, nil
	}
	c := &command{exec.Command("sh", "-c", s.run), make(chan struct{})}
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	for _, e := range os.Environ() {
		// systemd is to hear of the server, from the server.
		if !strings.HasPrefix(e, "NOTIFY_SOCKET=") {
			c.Env = append(c.Env, e)
		}
	}
	c.Env = append(c.Env, s.commandEnv()...)
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("--run: %w", err)
	}
	go func() {
		c.Wait() // what it says is in ProcessState
		close(c.ended)
	}()
	return c, nil
}

// commandEnv are the variables of nbdkit-captive(1), of the first listener and export.
func (s *service) commandEnv() []string {
	var at endpoint
	if len(s.listeners.made) > 0 {
		at = s.listeners.made[0].at
	} else {
		at.addr = s.listeners.all()[0].Addr()
	}
	name := ""
	if len(s.exports) > 0 {
		name = s.exports[0].name
	}
	uri := s.uri(at, name)
	tls := map[string]string{"off": "", "on": "1", "require": "2"}[s.TLS.value]
	return []string{"uri=" + uri, "nbd=" + uri, "exportname=" + name, "port=" + at.port(), "unixsocket=" + at.socket(), "tls=" + tls}
}

// done is closed when the command has ended; never where there is none.
func (c *command) done() <-chan struct{} {
	if c == nil {
		return nil
	}
	return c.ended
}

// end asks a command that still runs to end, waits until it has, and returns its
// status if that is not 0.
func (c *command) end(log zerolog.Logger) error {
	if c == nil {
		return nil
	}
	if err := c.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		log.Warn().Err(err).Int("pid", c.Process.Pid).Msg("cannot end the command, waiting for it")
	}
	<-c.ended
	status := c.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case status.Signaled():
		log.Warn().Stringer("signal", status.Signal()).Msg("the command was killed")
		return commandStatus(128 + int(status.Signal()))
	case status.ExitStatus() != 0:
		return commandStatus(status.ExitStatus())
	}
	return nil
}
