package vmtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/bttnbd/bttnbd/internal/vm"
	"github.com/bttnbd/bttnbd/test/vm/workload"
)

const (
	logs = 4  // writers of each image in the crash tests
	cuts = 10 // power failures of one boot
)

// A target is an image in an NVDIMM to which a guest writes logs.
type target struct {
	path   string
	offset int64 // of the image in the file
	acked  counters
	sector int
	seed   uint64
}

// cutPower copies the targets in one moment, as a power failure would leave them,
// and fails the test unless everything is there that was acknowledged until then,
// nothing is torn, and bttcheck finds no damage before and after the recovery. It
// returns how many writes were interrupted.
func cutPower(t *testing.T, g *vm.Guest, targets []target) (interrupted int) {
	t.Helper()
	dir := t.TempDir()
	acked := make([]counters, len(targets))
	copies := make([]string, len(targets))
	err := g.Freeze(func() (err error) {
		for i, tg := range targets {
			acked[i] = bytes.Clone(tg.acked)
			copies[i] = filepath.Join(dir, strconv.Itoa(i))
			err = errors.Join(err, copyFrom(copies[i], tg.path, tg.offset))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, tg := range targets {
		interrupted += check(t, copies[i])
		acked[i].verify(t, copies[i], tg.sector, tg.seed)
		if n := check(t, copies[i]); n != 0 {
			t.Errorf("bttcheck finds %d interrupted writes after the recovery", n)
		}
		os.Remove(copies[i])
	}
	return interrupted
}

// cutOften does so again and again while the guest writes on.
func cutOften(t *testing.T, g *vm.Guest, targets []target) {
	t.Helper()
	var interrupted, writes int
	for range cuts {
		var before, now uint64
		for _, tg := range targets {
			before += tg.acked.total()
		}
		await(t, g, func() bool {
			now = 0
			for _, tg := range targets {
				if tg.acked.total() == 0 {
					return false
				}
				now += tg.acked.total()
			}
			return now > before+100
		})
		interrupted += cutPower(t, g, targets)
		writes = int(now)
	}
	t.Logf("%d power failures in %d writes; %d writes were interrupted and completed", cuts, writes, interrupted)
}

// copyFrom makes a copy of a file from the offset on.
func copyFrom(to, from string, offset int64) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = in.Seek(offset, io.SeekStart)
	if err == nil {
		_, err = io.Copy(out, in)
	}
	return errors.Join(err, out.Close())
}

// Goal: whenever the power fails while Linux writes to its BTT, all that it has
// acknowledged is there when bttnbd serves the image, nothing is torn, and bttcheck
// finds no damage. The image then returns to Linux, which finds everything, too.
func TestPowerCutUnderLinux(t *testing.T) {
	needGuest(t)
	const seed = 500
	m, script := newMachine(), ""
	var targets []target
	for i, sector := range []int{4096, 512} {
		img, cnt := file(t, "linux.img", 32*mib), file(t, "counters", 16*mib)
		m.NVDIMMs = append(m.NVDIMMs, nvdimm(img), nvdimm(cnt))
		tg := target{path: img, acked: mapCounters(t, cnt, logs), sector: sector, seed: seed + 10*uint64(i)}
		targets = append(targets, tg)
		script += fmt.Sprintf(`ndctl create-namespace -f -e namespace$R%[1]d.0 -m sector -l %[3]d
guest log /dev/pmem${R%[1]d}s /dev/pmem$R%[2]d %[3]d %[4]d %[5]d &
`, 2*i, 2*i+1, sector, tg.seed, logs)
	}
	g := start(t, m, script+"set +x\necho; echo writing\nwait\n", "writing")
	cutOften(t, g, targets)
	if err := g.PowerCut(); err != nil {
		t.Fatal(err)
	}
	again := ""
	for i, tg := range targets {
		check(t, tg.path)
		tg.acked.verify(t, tg.path, tg.sector, tg.seed)
		check(t, tg.path)
		again += fmt.Sprintf(`guest verify /dev/pmem${R%[1]d}s /dev/pmem$R%[2]d %[3]d %[4]d %[5]d
ndctl check-namespace -f namespace$R%[1]d.0
`, 2*i, 2*i+1, tg.sector, tg.seed, logs)
	}
	boot(t, m, again)
}

// Goal: when our server is killed in the middle of writes, everything that it has
// acknowledged is there when Linux attaches the image and does the recovery.
func TestServerKilledThenLinux(t *testing.T) {
	needGuest(t)
	const seed, images, enough = 600, 6, 2000 // acknowledged writes before each kill
	m, script := newMachine(), ""
	for i := range images {
		sector := 4096 >> (3 * (i % 2))
		image := create(t, "image", 32*mib, "--sector-size", fmt.Sprint(sector))
		acked := killUnderLoad(t, image, sector, seed+10*uint64(i), enough+int64(i)*100)
		counters := file(t, "counters", 16*mib)
		writeCounters(t, counters, acked)
		m.NVDIMMs = append(m.NVDIMMs, nvdimm(image), nvdimm(counters))
		script += fmt.Sprintf(`guest verify /dev/pmem${R%[1]d}s /dev/pmem$R%[2]d %[3]d %[4]d %[5]d
ndctl check-namespace -f namespace$R%[1]d.0
`, 2*i, 2*i+1, sector, seed+10*i, logs)
	}
	boot(t, m, script)
	for i := range images {
		check(t, m.NVDIMMs[2*i].Path)
	}
}

// killUnderLoad serves the image, writes the logs, kills the server when enough
// writes were acknowledged, and returns how many each log has got.
func killUnderLoad(t *testing.T, image string, sector int, seed uint64, enough int64) [logs]uint64 {
	t.Helper()
	s := serve(t, image)
	var acked [logs]uint64
	var errs [logs]error
	var total atomic.Int64
	reached := make(chan struct{})
	var running sync.WaitGroup
	for i, l := range workload.Split(seed, sector, s.deviceSize(t), logs) {
		conn := s.dial(t)
		running.Go(func() {
			errs[i] = l.Write(conn, make([]byte, workload.MaxBlocks*sector), func(n uint64) error {
				acked[i] = n
				if total.Add(1) == enough {
					close(reached)
				}
				return nil
			})
		})
	}
	stopped := make(chan struct{})
	go func() { running.Wait(); close(stopped) }()
	select {
	case <-reached:
	case <-stopped:
		t.Fatalf("all writers ended before %d writes: %v\n%s", enough, errors.Join(errs[:]...), &s.stderr)
	}
	s.kill(t)
	<-stopped
	for _, err := range errs {
		if errors.Is(err, errRefused) {
			t.Fatalf("%v\n%s", err, &s.stderr)
		}
	}
	return acked
}

func writeCounters(t *testing.T, path string, acked [logs]uint64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i, n := range acked {
		if _, err := f.WriteAt(binary.LittleEndian.AppendUint64(nil, n), int64(i)*4096); err != nil {
			t.Fatal(err)
		}
	}
}
