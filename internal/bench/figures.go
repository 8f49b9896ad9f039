package main

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/pmem"
)

// figure is what has a limit and no peer: the median of several takings.
type figure struct {
	Name  string  `json:"name"`
	Unit  string  `json:"unit"`
	Value float64 `json:"value"`
	Limit float64 `json:"limit"` // it should not be more than this
	Error string  `json:"error,omitempty"`

	once func() (float64, error)
}

// take measures n times.
func (f *figure) take(n int) {
	var all []float64
	for range n {
		v, err := f.once()
		if err != nil {
			f.Error = err.Error()
			return
		}
		all = append(all, v)
	}
	f.Value = median(all)
}

func (f figure) String() string {
	if f.Error != "" {
		return f.Name + ": FAILED: " + f.Error
	}
	return fmt.Sprintf("%s: %.3g %s, limit %g", f.Name, f.Value, f.Unit, f.Limit)
}

func (b *bench) figures() []figure {
	return []figure{
		{Name: "create of 512 GiB on a sparse file, the whole command", Unit: "ms", Limit: 50, once: b.createHuge},
		{Name: "open of an image of 512 GiB", Unit: "ms", Limit: 10, once: b.openHuge},
		{Name: "memory of the server, 4 connections at depth 16, without the pages of the image", Unit: "MiB", Limit: 32 + 4*2, once: b.memory},
	}
}

// createHuge times a command from its start to its end, in milliseconds.
func (b *bench) createHuge() (float64, error) {
	os.Remove(b.dir + "/huge")
	start := time.Now()
	out, err := exec.Command(b.bttnbd, "create", "--size=512G", b.dir+"/huge").CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	return millis(start), nil
}

// openHuge times what a program does that opens an image, in milliseconds.
func (b *bench) openHuge() (float64, error) {
	if _, err := os.Stat(b.dir + "/huge"); err != nil {
		if _, err := b.createHuge(); err != nil {
			return 0, err
		}
	}
	start := time.Now()
	r, err := pmem.Open(b.dir+"/huge", pmem.Options{Durability: pmem.ForceDAX})
	if err != nil {
		return 0, err
	}
	d, err := btt.Open(r, btt.Options{})
	if err != nil {
		r.Close()
		return 0, err
	}
	defer d.Close()
	return millis(start), nil
}

func millis(since time.Time) float64 { return float64(time.Since(since).Microseconds()) / 1e3 }

// memory is what our server holds after a load, in MiB: its heap, stacks and program,
// without the shared pages of the image.
func (b *bench) memory() (float64, error) {
	s, err := b.serve("ours")
	if err != nil {
		return 0, err
	}
	if _, _, err := (load{socket: s.socket, connections: 4, depth: 16, block: 4096, write: true}).run(time.Second / 2); err != nil {
		return 0, err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		if len(f) == 3 && (f[0] == "RssAnon:" || f[0] == "RssFile:") {
			kib, err := strconv.Atoi(f[1])
			if err != nil {
				return 0, err
			}
			sum += float64(kib) / 1024
		}
	}
	return sum, nil
}

// machine is what the figures were taken on.
type machine struct {
	CPU    string  `json:"cpu"`
	Cores  int     `json:"cores"`
	Kernel string  `json:"kernel"`
	Go     string  `json:"go"`
	Load   float64 `json:"load"` // at the start: more than a fraction of one spoils the rates
}

func thisMachine() machine {
	m := machine{Cores: runtime.NumCPU(), Go: runtime.Version()}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(b), "model name"); ok {
			line, _, _ := strings.Cut(rest, "\n")
			m.CPU = strings.TrimLeft(line, "\t :")
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel, _, _ = strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		fmt.Sscan(string(b), &m.Load)
		m.Load = math.Round(m.Load*10) / 10
	}
	return m
}
