package attach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/bttnbd/bttnbd/internal/kernel"
)

// An image grows under the device, on a message over the socket of its server:
//
//	who asks                       the server
//	 |  --- {"grow":{"size":…}} --->|   ends its connections between two requests,
//	 |                              |   closes the image, has it grown, opens it again,
//	 |                              |   goes on with the connections, and tells the
//	 |                              |   kernel the new size
//	 |  <-- {"grow":{…}} -----------|   or {"error":…}
//
// The kernel's requests wait meanwhile, as in a hand-over. If the server dies on the
// way, the device waits; the next attach finds the image as it was or larger, and gives
// the device the size that it has.

// Growth is what is asked for, and what has become of it. Sizes are in bytes.
type Growth struct {
	Size     uint64 `json:"size"` // that the file is to have; 0: what it has
	Force    bool   `json:"force,omitempty"`
	Allocate bool   `json:"allocate,omitempty"`

	Usable    uint64        `json:"usable,omitempty"` // of the image now
	WasUsable uint64        `json:"was_usable,omitempty"`
	Arenas    int           `json:"arenas,omitempty"`
	NewArenas int           `json:"new_arenas,omitempty"`
	Unused    uint64        `json:"unused,omitempty"`
	Paused    time.Duration `json:"paused,omitempty"` // for which nobody served the device
}

// grower is a process that asks for a growth.
type grower struct {
	conn *net.UnixConn
	want Growth
}

// Grow asks the process that serves the device to make its image larger, and returns
// when the device is.
func Grow(ctx context.Context, d kernel.Device, want Growth) (Growth, error) {
	c, err := dial(d)
	if err != nil {
		return Growth{}, fmt.Errorf("%s: nobody serves it: %w", d.Path(), err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := send(c, message{Grow: &want}); err != nil {
		return Growth{}, err
	}
	m, _, err := receive(c)
	switch {
	case ctx.Err() != nil:
		return Growth{}, context.Cause(ctx) // the server carries it to its end
	case err != nil:
		return Growth{}, fmt.Errorf("%s: its server has not answered: %w: see bttnbd list; if it is of an older version, bttnbd attach --replace first", d.Path(), err)
	case m.Error != "":
		return Growth{}, errors.New(m.Error)
	case m.Grow == nil:
		return Growth{}, fmt.Errorf("%s: no answer that makes sense", d.Path())
	}
	return *m.Grow, nil
}

// grow does what is asked for. An error is the end of the service; the device then waits.
func (s *Service) grow(g grower) error {
	defer g.conn.Close()
	source, ok := s.source.(*imageSource)
	switch {
	case !ok:
		return answer(g.conn, Growth{}, errors.New("the device is on another server: grow the image there, and attach it again"))
	case s.o.Grow == nil || source.image.Export.ReadOnly:
		return answer(g.conn, Growth{}, fmt.Errorf("%s is attached read-only: bttnbd detach %s first", s.o.Path, s.dev.Path()))
	}
	began := time.Now()
	s.quiesce()
	if err := source.close(); err != nil {
		return err
	}
	done, failed := s.o.Grow(g.want, source.image.File)
	if failed == nil {
		s.setup.Size = done.Usable - done.Usable%uint64(s.setup.BlockSize)
	}
	after := "it has grown"
	if failed != nil {
		after = "a growth that failed"
	}
	if err := s.resume(source, after); err != nil {
		err = errors.Join(failed, fmt.Errorf("%s waits: %w", s.dev.Path(), err))
		return errors.Join(err, answer(g.conn, Growth{}, err))
	}
	done.Paused = time.Since(began)
	if failed == nil {
		if err := s.resize(context.Background()); err != nil {
			failed = fmt.Errorf("the image has grown, but %s has not: %w: detach it and attach it again", s.dev.Path(), err)
		}
	}
	if failed != nil {
		s.o.Log.Warn().Err(failed).Str("device", s.dev.Path()).Msg("not grown")
	}
	return answer(g.conn, done, failed)
}

// resize tells the kernel the size of the device.
func (s *Service) resize(ctx context.Context) error {
	if err := kernel.Resize(s.setup); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, usableTimeout)
	defer cancel()
	if err := s.dev.AwaitUsable(ctx, s.setup.Size); err != nil {
		return err
	}
	if err := s.dev.RaiseLimits(); err != nil {
		s.o.Log.Warn().Err(err).Msg("cannot raise the size of requests")
	}
	s.o.Log.Info().Str("device", s.dev.Path()).Uint64("size", s.setup.Size).Msg("the device has grown")
	return nil
}

// answer tells who asks; that it has gone is no error.
func answer(c *net.UnixConn, done Growth, err error) error {
	m := message{Grow: &done}
	if err != nil {
		m = message{Error: err.Error()}
	}
	_ = send(c, m)
	return nil
}
