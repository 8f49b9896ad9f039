package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bttnbd/bttnbd/nbd"
)

// settings are what can be said to serve, by flags and in the file of --config,
// under the same names. A flag that is given beats the file.
type settings struct {
	Listen   []string `toml:"listen"`
	UnixMode modeFlag `toml:"unix-mode"`
	PIDFile  string   `toml:"pid-file"`
	monitorSettings

	ExportsDir []string   `toml:"exports-dir"`
	ReadOnly   bool       `toml:"read-only"`
	Create     sizeFlag   `toml:"create"`
	SectorSize choiceFlag `toml:"sector-size"`
	Durability choiceFlag `toml:"durability"`
	LimitRate  sizeFlag   `toml:"limit-rate"`
	LimitIOPS  rateFlag   `toml:"limit-iops"`

	TLS             choiceFlag `toml:"tls"`
	TLSCertificates string     `toml:"tls-certificates"`
	TLSVerifyPeer   bool       `toml:"tls-verify-peer"`
	TLSAllow        []string   `toml:"tls-allow"`

	MaxConnections        connectionsFlag `toml:"max-connections"`
	MaxConnectionsPerPeer connectionsFlag `toml:"max-connections-per-peer"`
	HandshakeTimeout      durationFlag    `toml:"handshake-timeout"`
	IdleTimeout           durationFlag    `toml:"idle-timeout"`
	WriteTimeout          durationFlag    `toml:"write-timeout"`
	MaxMemory             sizeFlag        `toml:"max-memory"`
	BusyPoll              busyPollFlag    `toml:"busy-poll"`

	User     string     `toml:"user"`
	Group    string     `toml:"group"`
	Sandbox  choiceFlag `toml:"sandbox"`
	LogLevel choiceFlag `toml:"log-level"`

	Exports []exportSettings `toml:"export"` // of the file alone
}

// newSettings are what holds where nothing is said.
func newSettings() settings {
	return settings{
		UnixMode:         0o600,
		SectorSize:       newChoice(namespaceSectors...),
		Durability:       newChoice("auto", "process"),
		TLS:              newChoice("off", "on", "require"),
		MaxConnections:   nbd.DefaultMaxConnections,
		HandshakeTimeout: durationFlag(nbd.DefaultHandshakeTimeout),
		WriteTimeout:     durationFlag(nbd.DefaultWriteTimeout),
		MaxMemory:        nbd.DefaultMaxMemory,
		BusyPoll:         busyPollFlag{durationFlag(nbd.DefaultBusyPoll)},
		Sandbox:          newChoice("auto", "off", "require"),
		LogLevel:         choiceFlag{value: "info", allowed: []string{"debug", "info", "warn", "error"}},
	}
}

// flagGroup is a headline of the help, and the flags under it.
type flagGroup struct {
	title string
	flags *pflag.FlagSet
}

func newGroup(title string) flagGroup {
	f := pflag.NewFlagSet(title, pflag.ContinueOnError)
	f.SortFlags = false
	return flagGroup{title, f}
}

// groups puts s on flags, as the help shows them. What s has are the defaults.
func (s *settings) groups() []flagGroup {
	return []flagGroup{s.imageFlags(), s.listenFlags(), s.tlsFlags(), s.limitFlags(), s.processFlags()}
}

func (s *settings) imageFlags() flagGroup {
	g := newGroup("Images")
	g.flags.StringArrayVar(&s.ExportsDir, "exports-dir", s.ExportsDir, "serve every image in `DIR` under its file name; may be repeated")
	g.flags.BoolVar(&s.ReadOnly, "read-only", s.ReadOnly, "refuse writes, and never change the image")
	g.flags.Var(&s.Create, "create", "make images that do not exist, of this size; those that do are left as they are")
	g.flags.Var(&s.SectorSize, "sector-size", "with --create: bytes that are written all or not at all")
	g.flags.Var(&s.Durability, "durability", "auto: what the medium can; process: survive a kill, but no power failure")
	return g
}

func (s *settings) listenFlags() flagGroup {
	g := newGroup("Listening")
	g.flags.StringArrayVar(&s.Listen, "listen", s.Listen, "listen on `ADDR`: unix:/path, tcp:host:port, tcp:port (localhost), vsock:port, systemd:name or fd:number; may be repeated")
	g.flags.Var(&s.UnixMode, "unix-mode", "permissions of the unix sockets")
	g.flags.StringVar(&s.PIDFile, "pid-file", s.PIDFile, "write the process id to `FILE` when ready, and remove it at the end")
	s.monitorSettings.addFlags(g.flags)
	return g
}

func (s *settings) tlsFlags() flagGroup {
	g := newGroup("TLS")
	g.flags.Var(&s.TLS, "tls", "on: clients may use TLS; require: they must")
	g.flags.StringVar(&s.TLSCertificates, "tls-certificates", s.TLSCertificates, "`DIR` with server-cert.pem and server-key.pem; to know clients also ca-cert.pem, and ca-crl.pem if there is one")
	g.flags.BoolVar(&s.TLSVerifyPeer, "tls-verify-peer", s.TLSVerifyPeer, "clients must have a certificate signed by ca-cert.pem")
	g.flags.StringArrayVar(&s.TLSAllow, "tls-allow", s.TLSAllow, "let in only certificates of `SUBJECT`, a common name or a whole distinguished name; may be repeated; implies --tls-verify-peer")
	return g
}

func (s *settings) limitFlags() flagGroup {
	g := newGroup("Limits")
	g.flags.Var(&s.MaxConnections, "max-connections", "`N` connections at a time; 0: any number")
	g.flags.Var(&s.MaxConnectionsPerPeer, "max-connections-per-peer", "`N` connections of one address, local user or vsock CID at a time; 0: any number")
	g.flags.Var(&s.HandshakeTimeout, "handshake-timeout", "time from connecting to the first request; 0: any")
	g.flags.Var(&s.IdleTimeout, "idle-timeout", "time without a request until a connection is closed; 0: any")
	g.flags.Var(&s.WriteTimeout, "write-timeout", "time for a client to take a reply, or to finish sending a request; 0: any")
	g.flags.Var(&s.MaxMemory, "max-memory", "memory for large buffers of all connections together; without more there are small ones")
	g.flags.Var(&s.BusyPoll, "busy-poll", "time to look out for a quick client's next request before sleeping, where a processor is free; at most 1ms; 0: none")
	g.flags.Var(&s.LimitRate, "limit-rate", "bytes a second, read and written, of each export")
	g.flags.Var(&s.LimitIOPS, "limit-iops", "`N` requests a second, of each export")
	return g
}

func (s *settings) processFlags() flagGroup {
	g := newGroup("Process")
	g.flags.StringVar(&s.User, "user", s.User, "become `USER` when images and sockets are open")
	g.flags.StringVar(&s.Group, "group", s.Group, "become a member of `GROUP` alone; without it, of the groups of the user")
	g.flags.Var(&s.Sandbox, "sandbox", "keep the server from all files but its own, with Landlock; auto: where the kernel has it")
	g.flags.Var(&s.LogLevel, "log-level", "what to log on stderr")
	return g
}

// validate refuses what contradicts itself.
func (s *settings) validate() error {
	switch {
	case s.SectorSize.given && s.Create == 0:
		return usagef("--sector-size is for new images: give --create SIZE as well, or leave it out")
	case s.ReadOnly && s.Create != 0:
		return usagef("--read-only and --create contradict each other: leave one out")
	case s.Group != "" && s.User == "":
		return usagef("--group %s without --user would leave the server root: give --user as well", s.Group)
	case s.TLS.value == "off" && (s.TLSCertificates != "" || s.verifyPeer()):
		return usagef("TLS is off: add --tls require, or leave --tls-certificates, --tls-verify-peer and --tls-allow out")
	case s.TLS.value != "off" && s.TLSCertificates == "":
		return usagef("--tls %s needs certificates: add --tls-certificates DIR", s.TLS.value)
	case s.TLS.value == "on" && s.verifyPeer():
		return usagef("--tls on lets clients in without TLS, and so without a certificate: use --tls require")
	case slices.Contains(s.TLSAllow, ""):
		return usagef(`--tls-allow "" would lock everybody out: name a subject, or leave it out`)
	}
	if err := s.monitorSettings.validate(); err != nil {
		return err
	}
	for i, e := range s.Exports {
		switch {
		case slices.Contains(e.TLSAllow, ""):
			return usagef(`export %d, %q: tls-allow = [""] would lock everybody out: name a subject, or leave it out`, i+1, e.Name)
		case e.TLSAllow != nil && len(e.TLSAllow) == 0:
			return usagef("export %d, %q: tls-allow = [] names nobody: name a subject, or leave it out", i+1, e.Name)
		}
	}
	return nil
}

func (s *settings) verifyPeer() bool {
	restricted := func(e exportSettings) bool { return len(e.TLSAllow) > 0 }
	return s.TLSVerifyPeer || len(s.TLSAllow) > 0 || slices.ContainsFunc(s.Exports, restricted)
}

// groupedUsage is the usage template of a command whose flags are in groups.
func groupedUsage(cmd *cobra.Command, groups []flagGroup) {
	var b strings.Builder
	for _, g := range groups {
		cmd.Flags().AddFlagSet(g.flags)
		fmt.Fprintf(&b, "\n%s:\n%s", g.title, g.flags.FlagUsagesWrapped(helpWidth))
	}
	cmd.SetUsageTemplate("Usage:\n  {{.UseLine}}\n\nExamples:\n{{.Example}}\n" + b.String() + exitStatusTemplate)
}
