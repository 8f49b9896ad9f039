package workload

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// A WriteLog is what the kernel's dm-log-writes target has written to its log
// device (Documentation/admin-guide/device-mapper/log-writes.rst): all writes to a
// disk, each no later than the flush that made it durable, in units of the disk's
// sectors.
//
//	0          1         1+…                     2+…
//	| super    | entry   | the data of it, if any | entry | …
type WriteLog struct {
	Entries []LogEntry
	r       io.ReaderAt
}

// LogEntry is one entry of a [WriteLog].
type LogEntry struct {
	Offset, Length int64  // on the disk, in bytes
	Mark           string // a name that somebody gave to this point
	flags          uint64
	data           int64 // where in the log
}

// Flags of an entry, as in drivers/md/dm-log-writes.c.
const (
	logFlush   = 1 << iota // all before is durable
	logFUA                 // so is this write
	logDiscard             // there is no data
	logMark                // the data is a name
)

const (
	logMagic   = 0x6a736677736872
	logVersion = 1
	leastUnit  = 512
)

// ReadWriteLog reads the entries. The log is little-endian.
func ReadWriteLog(r io.ReaderAt) (*WriteLog, error) {
	head := make([]byte, leastUnit)
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if magic, version := le.Uint64(head), le.Uint64(head[8:]); magic != logMagic || version != logVersion {
		return nil, fmt.Errorf("no log of dm-log-writes: magic %#x, version %d", magic, version)
	}
	n, sector := le.Uint64(head[16:]), int64(le.Uint32(head[24:]))
	if sector == 0 || sector%leastUnit != 0 {
		return nil, fmt.Errorf("log of sectors of %d bytes", sector)
	}
	l := &WriteLog{r: r}
	for at := sector; n > 0; n-- {
		if _, err := r.ReadAt(head, at); err != nil {
			return nil, err
		}
		e := LogEntry{Offset: int64(le.Uint64(head)) * sector, Length: int64(le.Uint64(head[8:])) * sector, flags: le.Uint64(head[16:])}
		at += sector
		e.data = at
		switch {
		case e.flags&logMark != 0:
			e.Mark = strings.TrimRight(string(head[32:32+min(le.Uint64(head[24:]), leastUnit-32)]), "\x00")
		case e.flags&logDiscard == 0:
			at += e.Length
		}
		l.Entries = append(l.Entries, e)
	}
	return l, nil
}

// Durable reports whether all that stands in the log up to here is durable.
func (e *LogEntry) Durable() bool { return e.flags&(logFlush|logFUA) != 0 }

// Replay does what the entries from first up to, but not including, end did to the
// disk. buf is memory that both sides accept.
func (l *WriteLog) Replay(disk io.WriterAt, first, end int, buf []byte) error {
	for _, e := range l.Entries[first:end] {
		switch {
		case e.Mark != "":
			continue
		case e.flags&logDiscard != 0:
			return errors.New("the log has a discard: make the filesystem without")
		}
		for done := int64(0); done < e.Length; {
			p := buf[:min(int64(len(buf)), e.Length-done)]
			if _, err := l.r.ReadAt(p, e.data+done); err != nil {
				return err
			}
			if _, err := disk.WriteAt(p, e.Offset+done); err != nil {
				return err
			}
			done += int64(len(p))
		}
	}
	return nil
}
