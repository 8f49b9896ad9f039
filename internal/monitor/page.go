package monitor

import (
	_ "embed"
	"fmt"
	"html/template"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/internal/units"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"size":     units.Short,
	"isize":    func(n int64) string { return units.Short(uint64(max(n, 0))) },
	"count":    units.Count,
	"plural":   func(n int, what string) string { return units.Plural(uint64(max(n, 0)), what) },
	"rate":     Rounded,
	"speed":    Speed,
	"seconds":  Seconds,
	"duration": since,
	"date":     func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
	"rfc3339":  func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"group":    groupLabel,
	"percent":  percent,
}).Parse(pageText))

// page shows a Status to people. ?refresh=N has the browser come again every N
// seconds; nothing moves unless somebody wants it to.
func (m *Monitor) page(w http.ResponseWriter, r *http.Request) {
	refresh, err := strconv.Atoi(r.URL.Query().Get("refresh"))
	if err != nil || refresh < 1 || refresh > 3600 {
		refresh = 0
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	pageTemplate.Execute(w, struct { // an error is that of a client that has gone
		*Status
		Refresh  int
		Uptime   time.Duration
		Profiles bool
	}{m.Status(), refresh, m.now().Sub(m.started), m.o.Profiles})
}

// Rounded is a number of things a second, to three digits.
func Rounded(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 10:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case v < 100:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case v < 1e5:
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return units.Count(uint64(v))
}

// Speed is bytes a second, in MiB.
func Speed(v float64) string { return Rounded(v / (1 << 20)) }

// Seconds is a duration to two digits and its unit; "–" for none.
func Seconds(v float64) string {
	switch {
	case v == 0:
		return "–"
	case v < 1e-3:
		return twoDigits(v*1e6) + " µs"
	case v < 1:
		return twoDigits(v*1e3) + " ms"
	}
	return twoDigits(v) + " s"
}

func twoDigits(v float64) string {
	if v < 10 {
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 0, 64)
}

// since is a duration in its two largest units.
func since(d time.Duration) string {
	d = d.Round(time.Second)
	days, hours, minutes, seconds := d/(24*time.Hour), d/time.Hour%24, d/time.Minute%60, d/time.Second%60
	switch {
	case days > 0:
		return fmt.Sprintf("%d d %d h", days, hours)
	case hours > 0:
		return fmt.Sprintf("%d h %d min", hours, minutes)
	case minutes > 0:
		return fmt.Sprintf("%d min %d s", minutes, seconds)
	}
	return fmt.Sprintf("%d s", seconds)
}

// groupLabel is the i-th bucket of group sizes in words.
func groupLabel(i int) string {
	switch i {
	case 0:
		return "1"
	case 1:
		return "2"
	}
	return fmt.Sprintf("%d–%d", 1<<(i-1)+1, 1<<i)
}

// percent is the share of part in all, whole.
func percent(part uint64, all [btt.GroupSizes]uint64) int {
	total := uint64(0)
	for _, n := range all {
		total += n
	}
	if total == 0 {
		return 0
	}
	return int(math.Round(100 * float64(part) / float64(total)))
}
