package cli

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bttnbd/bttnbd/internal/units"
	"github.com/bttnbd/bttnbd/nbd"
)

// sizeFlag is a flag that takes a size of at least 1 byte. Its zero value is "not given".
type sizeFlag uint64

func (s *sizeFlag) Type() string { return "SIZE" }

func (s *sizeFlag) String() string {
	if *s == 0 {
		return ""
	}
	return units.Compact(uint64(*s))
}

func (s *sizeFlag) Set(text string) error {
	n, err := units.ParseSize(text)
	if err != nil {
		return err
	}
	if n == 0 {
		return errors.New("a size must be at least 1")
	}
	*s = sizeFlag(n)
	return nil
}

// UnmarshalText is Set, for the configuration file.
func (s *sizeFlag) UnmarshalText(text []byte) error { return s.Set(string(text)) }

// rateFlag is a flag that takes a number a second, of at least 1. Its zero value is
// "not given".
type rateFlag uint64

func (r *rateFlag) Type() string { return "N" }

func (r *rateFlag) String() string {
	if *r == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(*r), 10)
}

func (r *rateFlag) Set(text string) error {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n == 0 {
		return errors.New("not a number from 1 on")
	}
	*r = rateFlag(n)
	return nil
}

// UnmarshalText is Set, for the configuration file.
func (r *rateFlag) UnmarshalText(text []byte) error { return r.Set(string(text)) }

// connectionsFlag is a flag that takes a number of connections; 0 is "no bound".
type connectionsFlag uint32

func (c *connectionsFlag) Type() string   { return "N" }
func (c *connectionsFlag) String() string { return strconv.FormatUint(uint64(*c), 10) }

func (c *connectionsFlag) Set(text string) error {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return errors.New("not a number from 0 to 4294967295")
	}
	*c = connectionsFlag(n)
	return nil
}

// UnmarshalText is Set, for the configuration file.
func (c *connectionsFlag) UnmarshalText(text []byte) error { return c.Set(string(text)) }

// uuidFlag is a flag that takes a UUID. Its zero value is "not given".
type uuidFlag uuid.UUID

func (u *uuidFlag) Type() string { return "UUID" }

func (u *uuidFlag) String() string {
	if *u == (uuidFlag{}) {
		return ""
	}
	return uuid.UUID(*u).String()
}

func (u *uuidFlag) Set(text string) error {
	id, err := uuid.Parse(text)
	if err != nil {
		return errors.New("not a UUID: write it like 12345678-9abc-def0-1234-56789abcdef0")
	}
	*u = uuidFlag(id)
	return nil
}

// ownUUIDFlag is a uuidFlag of a BTT itself, which must have one.
type ownUUIDFlag struct{ uuidFlag }

// Set refuses the UUID of zeros, which would be "not given".
func (u *ownUUIDFlag) Set(text string) error {
	if err := u.uuidFlag.Set(text); err != nil {
		return err
	}
	if u.uuidFlag == (uuidFlag{}) {
		return errors.New("a BTT cannot have the UUID of zeros: leave it out for a random one")
	}
	return nil
}

// choiceFlag is a flag that takes one of a few words.
type choiceFlag struct {
	value   string
	allowed []string // the first is the default
	given   bool
}

func newChoice(allowed ...string) choiceFlag { return choiceFlag{value: allowed[0], allowed: allowed} }

// Type is what the help shows: the words, unless they are sizes, of which there are many.
func (c *choiceFlag) Type() string {
	if c.ofSizes() {
		return "SIZE"
	}
	return strings.Join(c.allowed, "|")
}

func (c *choiceFlag) ofSizes() bool  { return c.allowed[0][0] <= '9' }
func (c *choiceFlag) String() string { return c.value }

func (c *choiceFlag) Set(text string) error {
	if !slices.Contains(c.allowed, text) {
		return fmt.Errorf("choose %s", strings.Join(c.allowed, " or "))
	}
	c.value, c.given = text, true
	return nil
}

// UnmarshalText is Set, for the configuration file.
func (c *choiceFlag) UnmarshalText(text []byte) error { return c.Set(string(text)) }

// durationFlag is a flag that takes a duration; 0 is "no bound".
type durationFlag time.Duration

func (d *durationFlag) Type() string   { return "DURATION" }
func (d *durationFlag) String() string { return time.Duration(*d).String() }

func (d *durationFlag) Set(text string) error {
	v, err := time.ParseDuration(text)
	if err != nil || v < 0 {
		return errors.New("not a duration: write it like 30s, 5m or 0")
	}
	*d = durationFlag(v)
	return nil
}

// UnmarshalText is Set, for the configuration file.
func (d *durationFlag) UnmarshalText(text []byte) error { return d.Set(string(text)) }

// busyPollFlag is a duration that [nbd.Options].BusyPoll can have.
type busyPollFlag struct{ durationFlag }

func (b *busyPollFlag) Set(text string) error {
	var d durationFlag
	if err := d.Set(text); err != nil {
		return err
	}
	if time.Duration(d) > nbd.MaxBusyPoll {
		return fmt.Errorf("longer than a connection may look out before it sleeps: say %v or less", nbd.MaxBusyPoll)
	}
	b.durationFlag = d
	return nil
}

// UnmarshalText is Set, for the configuration file.
func (b *busyPollFlag) UnmarshalText(text []byte) error { return b.Set(string(text)) }

// modeFlag is a flag that takes the permissions of a file.
type modeFlag uint32

func (m *modeFlag) Type() string   { return "MODE" }
func (m *modeFlag) String() string { return fmt.Sprintf("%04o", uint32(*m)) }

func (m *modeFlag) Set(text string) error {
	v, err := strconv.ParseUint(text, 8, 32)
	if err != nil || v > 0o777 {
		return errors.New("not a file mode: write it in octal, like 0660")
	}
	*m = modeFlag(v)
	return nil
}

// UnmarshalText is Set, for the configuration file.
func (m *modeFlag) UnmarshalText(text []byte) error { return m.Set(string(text)) }

// flagError turns what pflag says into one line that tells what to do.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	var invalid *pflag.InvalidValueError
	var missing *pflag.ValueRequiredError
	var syntax *pflag.InvalidSyntaxError
	if given := cmd.Flags().Args(); cmd.HasSubCommands() && len(given) > 0 {
		return noSuchCommand(cmd, given) // its flags are unknown because it is
	}
	switch {
	case errors.As(err, &unknown):
		return unknownFlag(cmd, unknown)
	case errors.As(err, &missing):
		f := missing.GetFlag()
		name, usage := pflag.UnquoteUsage(f)
		return usagef("--%s needs a value, %s: %s", f.Name, name, usage)
	case errors.As(err, &invalid):
		f := invalid.GetFlag()
		if f.Value.Type() == "bool" {
			return usagef("--%s takes no value: give --%s, or leave it out", f.Name, f.Name)
		}
		return usagef("--%s %s: %v", f.Name, invalid.GetValue(), invalid.Unwrap())
	case errors.As(err, &syntax):
		return usagef("%s is no flag: write --name or --name=value, see %s --help", syntax.GetSpecifiedFlag(), cmd.CommandPath())
	}
	return usagef("%v: see %s --help", err, cmd.CommandPath())
}

func unknownFlag(cmd *cobra.Command, e *pflag.NotExistError) error {
	name := e.GetSpecifiedName()
	given := "--" + name
	if short := e.GetSpecifiedShortnames(); short != "" {
		given = "-" + name
		if name = strings.SplitN(short, "=", 2)[0]; len(name) > 1 {
			given = "-" + short
		}
	}
	if similar := similarFlags(cmd, name); len(similar) > 0 {
		return usagef("unknown flag %s: did you mean %s?", given, strings.Join(similar, " or "))
	}
	if long := fsckFlags[name]; cmd.Flags().Lookup(long) != nil {
		return usagef("unknown flag %s: did you mean --%s?", given, long)
	}
	return usagef("unknown flag %s: see %s --help", given, cmd.CommandPath())
}

// fsckFlags are what the flags of fsck(8) and its kind are called here.
var fsckFlags = map[string]string{"n": "dry-run", "y": "repair", "p": "repair", "a": "repair"}

// similarFlags are the flags of cmd that name was probably meant to be. What is similar
// is cobra's to say, as it does of commands: so the flags become commands for the moment.
func similarFlags(cmd *cobra.Command, name string) (list []string) {
	if len(name) < 2 {
		return nil // similar to everything
	}
	names := &cobra.Command{SuggestionsMinimumDistance: 2}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		names.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
	})
	for _, similar := range names.SuggestionsFor(name) {
		list = append(list, "--"+similar)
	}
	return list
}
