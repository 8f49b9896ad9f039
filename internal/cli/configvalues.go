package cli

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// checkValues refuses values that the settings of their keys cannot have, with line,
// key and what to write instead. Decoding alone would take a bare integer for a
// duration in nanoseconds or a file mode in decimal, and would speak of types of our
// source. What is no TOML, and keys that are unknown, are left to it.
func checkValues(text []byte) error {
	var p unstable.Parser
	p.Reset(text)
	all := newSettings()
	table, prefix := reflect.ValueOf(&all).Elem(), ""
	for p.NextExpression() {
		e := p.Expression()
		switch {
		case e.Kind == unstable.KeyValue && table.IsValid():
			if err := checkPair(&p, e, table, prefix); err != nil {
				return err
			}
		case e.Kind == unstable.ArrayTable && keyOf(e) == "export":
			table, prefix = newExport(), "export."
		case e.Kind == unstable.Table && keyOf(e) == "export":
			return fmt.Errorf("line %d: [export]: write [[export]], there may be several", lineOf(&p, e))
		case e.Kind == unstable.Table, e.Kind == unstable.ArrayTable:
			table = reflect.Value{}
		}
	}
	return syntaxError(&p, text)
}

// syntaxError names line and key of what the parser stopped at, and says what to do
// about the mistakes that are made most; nil if the parser came to the end.
func syntaxError(p *unstable.Parser, text []byte) error {
	var bad *unstable.ParserError
	if !errors.As(p.Error(), &bad) {
		return nil // whatever it is, decoding says it
	}
	at := min(cap(text)-cap(bad.Highlight), len(text)) // as Parser.Range has it, which panics at the end
	lines := strings.Split(string(text[:at]), "\n")
	inList := bad.Message == "array is incomplete" || strings.HasSuffix(bad.Message, "after array value")
	line, key := len(lines), ""
	for i := len(lines); i > 0 && key == "" && (inList || i == len(lines)); i-- {
		if found := keyAtStart.FindStringSubmatch(lines[i-1]); found != nil {
			line, key = i, found[1]+": "
		}
	}
	advice := bad.Message
	switch {
	case strings.HasPrefix(advice, "integers cannot have leading zeroes"):
		advice += ": write it in quotes"
	case inList:
		advice = "the list does not end: write ] behind its last value"
	}
	return fmt.Errorf("line %d: %s%s", line, key, advice)
}

// keyAtStart is a line that begins with a key and its "=".
var keyAtStart = regexp.MustCompile(`^\s*([A-Za-z0-9_."-]+)\s*=`)

func newExport() reflect.Value {
	return reflect.ValueOf(&exportSettings{
		SectorSize: sectorSizeFlag{newSettings().SectorSize},
		Durability: durabilityFlag{newSettings().Durability},
	}).Elem()
}

// checkPair checks a line "key = value" of table.
func checkPair(p *unstable.Parser, pair *unstable.Node, table reflect.Value, prefix string) error {
	key := keyOf(pair)
	field := fieldOf(table, key)
	if !field.IsValid() {
		return nil
	}
	err := checkValue(p, pair.Value(), field.Addr().Interface())
	var inside *lineError // of an export in one line, which has keys of its own
	if err == nil || errors.As(err, &inside) {
		return err
	}
	return &lineError{lineOf(p, pair), prefix + key, err}
}

// lineError is what is wrong with a key of the file.
type lineError struct {
	line int
	key  string
	err  error
}

func (e *lineError) Error() string { return fmt.Sprintf("line %d: %s: %v", e.line, e.key, e.err) }

// checkValue checks that value is one for the setting, a pointer.
func checkValue(p *unstable.Parser, value *unstable.Node, setting any) error {
	kinds, write := expected(setting)
	if !slices.Contains(kinds, value.Kind) {
		return fmt.Errorf("%s: write %s", written(p, value), write)
	}
	if take, ok := setting.(encoding.TextUnmarshaler); ok {
		return take.UnmarshalText(value.Data)
	}
	if value.Kind != unstable.Array {
		return nil
	}
	for items := value.Children(); items.Next(); {
		item := items.Node()
		_, exports := setting.(*[]exportSettings)
		switch {
		case exports && item.Kind == unstable.InlineTable:
			for pairs := item.Children(); pairs.Next(); {
				if err := checkPair(p, pairs.Node(), newExport(), "export."); err != nil {
					return err
				}
			}
		case item.Kind != unstable.Comment && (exports || item.Kind != unstable.String):
			return fmt.Errorf("%s: write %s", written(p, item), write)
		}
	}
	return nil
}

// expected says which kinds of TOML values a setting, given as a pointer, can have,
// and how to write them.
func expected(setting any) (kinds []unstable.Kind, write string) {
	switch v := setting.(type) {
	case *bool, **bool:
		return []unstable.Kind{unstable.Bool}, "true or false"
	case *connectionsFlag:
		return []unstable.Kind{unstable.Integer}, "a number from 0 on"
	case *rateFlag:
		return []unstable.Kind{unstable.Integer}, "a number from 1 on"
	case *sizeFlag:
		return []unstable.Kind{unstable.Integer, unstable.String}, `a number of bytes, or a size in quotes like "512M"`
	case *durationFlag, *busyPollFlag:
		return []unstable.Kind{unstable.String}, `a duration in quotes like "30s"`
	case *modeFlag:
		return []unstable.Kind{unstable.String}, `a mode in quotes like "0660"`
	case *sectorSizeFlag:
		return []unstable.Kind{unstable.Integer, unstable.String}, strings.Join(v.allowed, " or ")
	case *durabilityFlag:
		return expected(&v.choiceFlag)
	case *choiceFlag:
		kinds = []unstable.Kind{unstable.String}
		if v.ofSizes() {
			kinds = append(kinds, unstable.Integer)
			return kinds, strings.Join(v.allowed, " or ")
		}
		return kinds, `"` + strings.Join(v.allowed, `" or "`) + `"`
	case *[]string:
		return []unstable.Kind{unstable.Array}, `a list like ["…", "…"]`
	case *[]exportSettings:
		return []unstable.Kind{unstable.Array}, "[[export]] on a line of its own, and its keys below"
	}
	return []unstable.Kind{unstable.String}, `text in quotes`
}

// written is the value as it stands in the file.
func written(p *unstable.Parser, value *unstable.Node) string {
	switch {
	case value.Kind == unstable.Array:
		return "a list"
	case value.Kind == unstable.InlineTable:
		return "a table"
	case value.Raw.Length > 0:
		return string(p.Raw(value.Raw))
	}
	return string(value.Data)
}

// fieldOf is the field of table for a key; invalid if there is none.
func fieldOf(table reflect.Value, key string) reflect.Value {
	for _, f := range reflect.VisibleFields(table.Type()) {
		if f.Tag.Get("toml") == key {
			return table.FieldByIndex(f.Index)
		}
	}
	return reflect.Value{}
}

// exportKeys are the keys that an [[export]] can have.
func exportKeys() (keys []string) {
	t := reflect.TypeFor[exportSettings]()
	for i := range t.NumField() {
		keys = append(keys, t.Field(i).Tag.Get("toml"))
	}
	return keys
}

func keyOf(n *unstable.Node) string {
	var parts []string
	for key := n.Key(); key.Next(); {
		parts = append(parts, string(key.Node().Data))
	}
	return strings.Join(parts, ".")
}

func lineOf(p *unstable.Parser, n *unstable.Node) int {
	key := n.Key()
	key.Next()
	return p.Shape(key.Node().Raw).Start.Line
}
