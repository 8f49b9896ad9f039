package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/pflag"
)

// exportSettings is an [[export]] of the configuration file. What it leaves out is
// as the settings have it for all.
type exportSettings struct {
	Name        string         `toml:"name"`
	Path        string         `toml:"path"`
	Description string         `toml:"description"`
	ReadOnly    *bool          `toml:"read-only"`
	Create      sizeFlag       `toml:"create"`
	SectorSize  sectorSizeFlag `toml:"sector-size"`
	Durability  durabilityFlag `toml:"durability"`
	LimitRate   sizeFlag       `toml:"limit-rate"`
	LimitIOPS   rateFlag       `toml:"limit-iops"`
	TLSAllow    []string       `toml:"tls-allow"`
}

// sectorSizeFlag and durabilityFlag are choices that are good as they are made.
type (
	sectorSizeFlag struct{ choiceFlag }
	durabilityFlag struct{ choiceFlag }
)

// UnmarshalText is Set, for the configuration file.
func (f *sectorSizeFlag) UnmarshalText(text []byte) error {
	f.allowed = newSettings().SectorSize.allowed
	return f.Set(string(text))
}

// UnmarshalText is Set, for the configuration file.
func (f *durabilityFlag) UnmarshalText(text []byte) error {
	f.allowed = newSettings().Durability.allowed
	return f.Set(string(text))
}

// readConfig reads the file at path over the defaults, and the flags that were
// given over that.
func readConfig(path string, given *pflag.FlagSet) (settings, error) {
	s := newSettings()
	text, err := os.ReadFile(path)
	if err != nil {
		return s, fmt.Errorf("--config: %w", adviseConfig(err))
	}
	if err := decodeConfig(text, &s); err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	for i, e := range s.Exports {
		if e.Path == "" {
			return s, fmt.Errorf("%s: export %d, %q, has no path: add path = \"…\"", path, i+1, e.Name)
		}
	}
	for _, g := range s.groups() {
		var errs []error
		g.flags.VisitAll(func(f *pflag.Flag) {
			if was := given.Lookup(f.Name); was.Changed {
				errs = append(errs, copyFlag(f, was))
			}
		})
		if err := errors.Join(errs...); err != nil {
			return s, err
		}
	}
	return s, nil
}

// adviseConfig adds to an error of reading the file what to do about it.
func adviseConfig(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: check the path; bttnbd serve --help says what such a file has", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: run as a user who may read it", err)
	}
	return err
}

func copyFlag(to, from *pflag.Flag) error {
	if list, ok := from.Value.(pflag.SliceValue); ok {
		return to.Value.(pflag.SliceValue).Replace(list.GetSlice())
	}
	return to.Value.Set(from.Value.String())
}

// decodeConfig refuses keys that it does not know, and values that they cannot have.
// Errors begin with the line.
func decodeConfig(text []byte, s *settings) error {
	if err := checkValues(text); err != nil {
		return err
	}
	d := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	err := d.Decode(s)
	var unknown *toml.StrictMissingError
	var bad *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		var errs []error
		for _, e := range unknown.Errors {
			errs = append(errs, unknownKey(&e))
		}
		return errors.Join(errs...)
	case errors.As(err, &bad):
		row, _ := bad.Position()
		what := strings.TrimPrefix(bad.Error(), "toml: ")
		if strings.HasPrefix(what, "cannot decode TOML") { // goes on about our source
			what = "this cannot be its value"
		}
		if key := strings.Join(bad.Key(), "."); key != "" {
			what = key + ": " + what
		}
		return fmt.Errorf("line %d: %s", row, what)
	}
	return err
}

func unknownKey(e *toml.DecodeError) error {
	row, _ := e.Position()
	there := "see bttnbd serve --help for the keys there are"
	if key := e.Key(); len(key) > 1 && key[0] == "export" {
		there = "an export has " + strings.Join(exportKeys(), ", ")
	}
	return fmt.Errorf("line %d: unknown key %s: %s", row, strings.Join(e.Key(), "."), there)
}
