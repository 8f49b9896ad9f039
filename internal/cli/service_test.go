package cli

import "testing"

// Goal: what 0 means to a person is not what it means to package nbd.
func TestZeroOptions(t *testing.T) {
	s := &service{serveOptions: serveOptions{settings: newSettings()}}
	s.TLS.value = "off"
	if o := s.options(); o.HandshakeTimeout <= 0 || o.WriteTimeout <= 0 || o.BusyPoll <= 0 || o.MaxConnections <= 0 {
		t.Errorf("with nothing said: %+v", o)
	}
	s.HandshakeTimeout, s.WriteTimeout, s.BusyPoll, s.MaxConnections = 0, 0, busyPollFlag{}, 0
	if o := s.options(); o.HandshakeTimeout >= 0 || o.WriteTimeout >= 0 || o.BusyPoll >= 0 || o.MaxConnections >= 0 {
		t.Errorf("all 0: %+v", o)
	}
}
