package monitor

import (
	"slices"
	"strings"
	"time"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/internal/units"
	"github.com/bttnbd/bttnbd/nbd"
)

// Image is what is behind an export, as it was opened.
type Image struct {
	Name        string `json:"name"` // of the export
	Description string `json:"description"`
	Path        string `json:"path"`
	Device      string `json:"device"` // /dev/nbdN where it is attached, else ""
	Size        uint64 `json:"size"`   // bytes, as a client sees them
	SectorSize  uint32 `json:"sector_size"`
	Format      string `json:"format"`
	Durability  string `json:"durability"`
	ReadOnly    bool   `json:"read_only"`
	Arenas      int    `json:"arenas"`

	Engine Engine `json:"-"` // nil: of another server, nothing is known
}

// Engine is the part of [btt.Device] that is looked at.
type Engine interface {
	Stats() btt.Stats
	Failures() []string
}

// Status is what is known at one moment. Its JSON only ever gains fields; a change of
// any other kind would be another number in Schema.
type Status struct {
	Schema   int       `json:"schema"`
	Version  string    `json:"version"`
	PID      int       `json:"pid"`
	Started  time.Time `json:"started"`
	Now      time.Time `json:"now"`
	Healthy  bool      `json:"healthy"`
	Problems []string  `json:"problems"` // why not, a line each
	Server   Server    `json:"server"`
	Window   float64   `json:"window_seconds"` // what Recent of the exports is about
	Bounds   []float64 `json:"latency_bounds_seconds"`
	Exports  []Export  `json:"exports"`
	Clients  []Client  `json:"clients"`
}

// Server is what all exports share.
type Server struct {
	Connections int    `json:"connections"`
	Accepted    uint64 `json:"accepted"`
	Refused     uint64 `json:"refused"`
	Negotiated  uint64 `json:"negotiated"`
	Buffers     int64  `json:"buffer_bytes"`
	MaxBuffers  int64  `json:"max_buffer_bytes"` // 0: not known
}

// Export is an export with what it has done.
type Export struct {
	Image
	Connections int               `json:"connections"`
	Commands    []Command         `json:"commands"`
	Errors      map[string]uint64 `json:"errors"` // replies, by name of the number
	Blocks      *Blocks           `json:"blocks"` // null: nothing is known
	Problems    []string          `json:"problems"`
	Recent      Rates             `json:"recent"`
}

// Command is a kind of request.
type Command struct {
	Name     string   `json:"command"`
	Requests uint64   `json:"requests"`
	Bytes    uint64   `json:"bytes"`
	Buckets  []uint64 `json:"latency_buckets"` // one more than there are bounds
	Seconds  float64  `json:"latency_sum_seconds"`
}

// Blocks is what the engine has counted since the image was opened.
type Blocks struct {
	Read         uint64                 `json:"read"`
	Written      uint64                 `json:"written"`
	Marked       uint64                 `json:"marked"`
	Parts        uint64                 `json:"part_writes"`
	Groups       [btt.GroupSizes]uint64 `json:"groups"` // by size: 1, 2, to 4, to 8 … blocks
	Drains       uint64                 `json:"drains"`
	Syncs        uint64                 `json:"msyncs"`
	SyncBytes    uint64                 `json:"msync_bytes"`
	LaneWaits    uint64                 `json:"lane_waits"`
	RTTWaits     uint64                 `json:"rtt_waits"`
	Recovered    uint64                 `json:"lanes_recovered"`
	Retired      int                    `json:"lanes_retired"`
	FailedArenas int                    `json:"arenas_failed"`
}

// Client is a connection.
type Client struct {
	ID       uint64    `json:"id"`
	Peer     string    `json:"peer"`
	Since    time.Time `json:"since"`
	Chosen   bool      `json:"negotiated"`
	Export   string    `json:"export"`
	TLS      string    `json:"tls"` // "" in clear
	Subject  string    `json:"tls_subject"`
	Requests uint64    `json:"requests"`
	Bytes    uint64    `json:"bytes"`
	Errors   uint64    `json:"errors"`
}

const schema = 1

// look is the present Status but for its rates.
func (m *Monitor) look() *Status {
	s := &Status{
		Schema: schema, Version: m.o.Version, PID: m.o.PID, Started: m.started, Now: m.now(),
		Bounds: bounds, Exports: []Export{}, Clients: []Client{}, Problems: []string{},
	}
	counted := map[string]nbd.ExportStats{}
	if server := m.o.Server(); server != nil {
		st := server.Stats()
		s.Server = Server{st.Connections, st.Accepted, st.Refused, st.Negotiated, st.Memory, m.o.MaxBuffers}
		for _, e := range st.Exports {
			counted[e.Name] = e
		}
		for _, c := range server.Clients() {
			s.Clients = append(s.Clients, Client(c))
		}
	}
	for _, im := range m.o.Images() {
		e := newExport(im, counted[im.Name])
		for _, p := range e.Problems {
			s.Problems = append(s.Problems, "export \""+im.Name+"\": "+p)
		}
		s.Exports = append(s.Exports, e)
	}
	slices.SortStableFunc(s.Exports, func(a, b Export) int { return compareNames(a.Name, b.Name) })
	if why := m.ending.Load(); why != nil {
		s.Problems = append(s.Problems, *why)
	}
	s.Healthy = len(s.Problems) == 0
	return s
}

func compareNames(a, b string) int {
	if a < b {
		return -1
	}
	if a > b {
		return 1
	}
	return 0
}

// bounds are the latency bounds in seconds.
var bounds = func() (all []float64) {
	for _, d := range nbd.LatencyBounds() {
		all = append(all, d.Seconds())
	}
	return all
}()

// usual are the commands that are shown even where none has come.
var usual = []int{nbd.NBD_CMD_READ, nbd.NBD_CMD_WRITE, nbd.NBD_CMD_FLUSH, nbd.NBD_CMD_TRIM, nbd.NBD_CMD_WRITE_ZEROES}

func newExport(im Image, st nbd.ExportStats) Export {
	for _, text := range []*string{&im.Name, &im.Description, &im.Path, &im.Device} {
		*text = strings.ToValidUTF8(*text, "\uFFFD") // a path may be any bytes, a label may not
	}
	e := Export{Image: im, Connections: st.Connections, Errors: map[string]uint64{}, Commands: []Command{}, Problems: []string{}}
	for i := range nbd.Commands {
		if st.Requests[i] == 0 && !slices.Contains(usual, i) {
			continue
		}
		l := st.Latency[i]
		e.Commands = append(e.Commands, Command{nbd.CommandName(i), st.Requests[i], st.Bytes[i], slices.Clone(l.Buckets[:]), l.Sum.Seconds()})
	}
	for number, n := range st.Errors {
		e.Errors[number.String()] = n
	}
	if im.Engine != nil {
		e.Blocks = newBlocks(im.Engine.Stats())
		e.Problems = append(e.Problems, im.Engine.Failures()...)
	}
	return e
}

func newBlocks(st btt.Stats) *Blocks {
	return &Blocks{
		Read: st.BlocksRead, Written: st.BlocksWritten, Marked: st.BlocksMarked, Parts: st.PartWrites,
		Groups: st.GroupSizes, Drains: st.Drains, Syncs: st.Medium.Rounds, SyncBytes: st.Medium.Bytes,
		LaneWaits: st.LaneWaits, RTTWaits: st.RTTWaits,
		Recovered: st.LanesRecovered, Retired: st.LanesRetired, FailedArenas: st.ArenasFailed,
	}
}

// Command finds a kind of request by its name; the zero Command if there is none.
func (e *Export) Command(name string) Command {
	for _, c := range e.Commands {
		if c.Name == name {
			return c
		}
	}
	return Command{Name: name}
}

// ErrorReplies is how many there were of all numbers.
func (e *Export) ErrorReplies() (n uint64) {
	for _, k := range e.Errors {
		n += k
	}
	return n
}

// Warnings are what an operator should look at although all exports serve, a line
// each: requests that failed with EIO since the server started. The log has why, and
// where: bad memory, a file that was cut short, error entries.
func (s *Status) Warnings() (all []string) {
	for i := range s.Exports {
		if w := s.Exports[i].Warning(); w != "" {
			all = append(all, "export \""+s.Exports[i].Name+"\": "+w)
		}
	}
	return all
}

// Warning is that of one export; "" for none.
func (e *Export) Warning() string {
	n := e.Errors[nbd.NBD_EIO.String()]
	if n == 0 {
		return ""
	}
	return units.Plural(n, "request") + " failed with EIO since the server started; see the log"
}

// OtherRequests is how many there were that neither read nor write.
func (e *Export) OtherRequests() (n uint64) {
	for _, c := range e.Commands {
		if c.Name != "read" && c.Name != "write" {
			n += c.Requests
		}
	}
	return n
}
