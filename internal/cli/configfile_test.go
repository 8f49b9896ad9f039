package cli

import (
	"strings"
	"testing"
)

// Goal: a value that a key cannot have is refused with line, key and what to write;
// nothing of our source shows. Above all, integers do not get past the checks that
// flags have: 600 is no mode, and 5 no duration.
func TestConfigValues(t *testing.T) {
	for text, want := range map[string]string{
		`unix-mode = 600`:                          `line 1: unix-mode: 600: write a mode in quotes like "0660"`,
		`unix-mode = 0o660`:                        `line 1: unix-mode: 0o660: write a mode in quotes like "0660"`,
		`unix-mode = "999"`:                        `line 1: unix-mode: not a file mode: write it in octal, like 0660`,
		"\nhandshake-timeout = 5":                  `line 2: handshake-timeout: 5: write a duration in quotes like "30s"`,
		`idle-timeout = 0`:                         `line 1: idle-timeout: 0: write a duration in quotes like "30s"`,
		`write-timeout = 1.5`:                      `line 1: write-timeout: 1.5: write a duration in quotes like "30s"`,
		`write-timeout = "5"`:                      `line 1: write-timeout: not a duration: write it like 30s, 5m or 0`,
		`busy-poll = "1s"`:                         `line 1: busy-poll: longer than a connection may look out before it sleeps: say 1ms or less`,
		`busy-poll = 0`:                            `line 1: busy-poll: 0: write a duration in quotes like "30s"`,
		`tls = true`:                               `line 1: tls: true: write "off" or "on" or "require"`,
		`sandbox = true`:                           `line 1: sandbox: true: write "auto" or "off" or "require"`,
		`sandbox = "on"`:                           `line 1: sandbox: choose auto or off or require`,
		`sector-size = 1000`:                       `line 1: sector-size: choose `,
		`create = true`:                            `line 1: create: true: write a number of bytes, or a size in quotes like "512M"`,
		`max-memory = -1`:                          `line 1: max-memory: size "-1" is not a number`,
		`max-memory = 1.5`:                         `line 1: max-memory: 1.5: write a number of bytes`,
		`limit-iops = "10k"`:                       `line 1: limit-iops: "10k": write a number from 1 on`,
		`limit-iops = -1`:                          `line 1: limit-iops: not a number from 1 on`,
		`max-connections = -1`:                     `line 1: max-connections: not a number from 0 to 4294967295`,
		`max-connections = "many"`:                 `line 1: max-connections: "many": write a number from 0 on`,
		`max-connections = 1979-05-27`:             `line 1: max-connections: 1979-05-27: write a number from 0 on`,
		`listen = "tcp:10809"`:                     `line 1: listen: "tcp:10809": write a list like ["…", "…"]`,
		"listen = [\n\"tcp:10809\", # two\n7]":     `line 1: listen: 7: write a list like ["…", "…"]`,
		`user = 12345`:                             `line 1: user: 12345: write text in quotes`,
		`user = ["x"]`:                             `line 1: user: a list: write text in quotes`,
		`read-only = "yes"`:                        `line 1: read-only: "yes": write true or false`,
		`export = 5`:                               `line 1: export: 5: write [[export]] on a line of its own`,
		`export = [5]`:                             `line 1: export: 5: write [[export]] on a line of its own`,
		"tls = \"off\"\n[export]\npath = \"x\"":    `line 2: [export]: write [[export]], there may be several`,
		"[[export]]\nread-only = 1":                `line 2: export.read-only: 1: write true or false`,
		"[[export]]\nsector-size = 1000":           `line 2: export.sector-size: choose `,
		"[[export]]\ndurability = true":            `line 2: export.durability: true: write "auto" or "process"`,
		"[[export]]\ntls-allow = \"x\"":            `line 2: export.tls-allow: "x": write a list`,
		"\nexport = [{path = \"x\", create = []}]": `line 2: export.create: a list: write a number of bytes`,
		"\nunix-mode=0660":                         `line 2: unix-mode: integers cannot have leading zeroes: write it in quotes`,
		"x = 1\nlisten = [\"a\",\n":                `line 2: listen: the list does not end: write ] behind its last value`,
		"listen = [\n\"a\"\nuser = \"b\"":          `line 1: listen: the list does not end: write ] behind its last value`,
		"user = \"a\"\njunk here":                  `line 2: expected '=' after key`,
		"user = \"a\"\n[[export":                   `line 2: expected`,
		"[[export]]\npth = \"x\"":                  `line 2: unknown key export.pth: an export has name, path, description, read-only, create, sector-size, durability, limit-rate, limit-iops, tls-allow`,
		"[listen]\nx = 1":                          `line 1: `,
		"[[listen]]\nx = 1":                        `line 1: `,
		"listen.x = 1":                             `line 1: `,
		`max-connections = 99999999999`:            `line 1: max-connections: not a number from 0 to 4294967295`,
	} {
		s := newSettings()
		err := decodeConfig([]byte(text), &s)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
			continue
		}
		for _, ours := range []string{"cli.", "uint", "[]string", "Flag", "strconv", "a integer"} {
			if strings.Contains(err.Error(), ours) {
				t.Errorf("%q: %v speaks of %s", text, err, ours)
			}
		}
	}
}

// Goal: what can be written in several ways can.
func TestConfigValuesAllowed(t *testing.T) {
	s := newSettings()
	err := decodeConfig([]byte(`
listen = [ "tcp:1", # one
  'tcp:2' ]
sector-size = 512
create = "1G"
limit-rate = 1000
max-connections = 0
export = [{ name = "x", path = "y", sector-size = "4096", read-only = true }]
`), &s)
	if err != nil || len(s.Listen) != 2 || s.Create != 1<<30 || s.SectorSize.value != "512" || len(s.Exports) != 1 ||
		s.Exports[0].SectorSize.value != "4096" || s.LimitRate != 1000 || s.MaxConnections != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}
