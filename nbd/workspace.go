package nbd

import "sync"

// workspace is the memory that a connection works in. It has one from its
// client's first byte until all is answered and the next wait begins, and none
// while it waits.
type workspace struct {
	in, out []byte // the read buffer and that for replies
	group   group
	extents extentList
	piece   int // how much of a READ or WRITE that does not fit is moved at a time
}

// The two sizes of a workspace: a large one, as long as Options.MaxMemory has
// room for it, and a small one, which makes everything slower and nothing else.
const (
	largeWorkspace = 2*bufferSize + maxGroup*groupEntry + maxExtents*extentEntry
	groupEntry     = 80 // bytes of a request, an offset, a slice and an error
	extentEntry    = 16
)

// Where workspaces, and the other buffers of connections, are between two uses.
var (
	largePool = sync.Pool{New: func() any { return newWorkspace(bufferSize, largePiece, maxGroup, maxExtents) }}
	smallPool = sync.Pool{New: func() any { return newWorkspace(smallBuffer, smallPiece, smallGroup, smallExtents) }}
	piecePool = sync.Pool{New: func() any { return new([pieceSize]byte) }}

	largeStagePool = sync.Pool{New: func() any { return new([largeStage]byte) }}
	smallStagePool = sync.Pool{New: func() any { return new([smallStage]byte) }}
)

func newWorkspace(buffer, piece, group, extents int) *workspace {
	ws := &workspace{
		in:    make([]byte, buffer),
		out:   make([]byte, 0, buffer),
		group: newGroup(group),
		piece: piece,
	}
	ws.extents.init(extents)
	return ws
}

// take counts n bytes of large buffers, if MaxMemory has room for them or they
// must be had.
func (s *Server) take(n int64, must bool) bool {
	if s.memory.Add(n) <= s.o.MaxMemory || must {
		return true
	}
	s.memory.Add(-n)
	return false
}

func (s *Server) give(n int64) { s.memory.Add(-n) }

// takeOption counts the data of a long option, if there may be one more.
func (s *Server) takeOption() bool {
	if s.longOptions.Add(1) <= maxLongOptions && s.take(maxOptionData, false) {
		return true
	}
	s.longOptions.Add(-1)
	return false
}

func (s *Server) giveOption() {
	s.give(maxOptionData)
	s.longOptions.Add(-1)
}

// attach gives c a workspace, if it has none: a small one in the handshake,
// where nothing is known of the client, and a large one later. Where the least
// that the backend takes does not fit a small one, it is a large one at any rate.
func (c *conn) attach() {
	if c.ws != nil {
		return
	}
	if c.exp != nil && c.s.take(largeWorkspace, c.exp.MinBlock > smallPiece) {
		c.use(largePool.Get().(*workspace))
	} else {
		c.use(smallPool.Get().(*workspace))
	}
}

func (c *conn) use(ws *workspace) {
	c.ws, c.in, c.out, c.r, c.w = ws, ws.in, ws.out, 0, 0
	c.group, c.extents = &ws.group, &ws.extents
}

// detach gives the workspace back, with all that is in it.
func (c *conn) detach() {
	if c.ws == nil {
		return
	}
	if c.ws.piece == largePiece {
		c.s.give(largeWorkspace)
		largePool.Put(c.ws)
	} else {
		smallPool.Put(c.ws)
	}
	c.ws, c.in, c.out, c.r, c.w = nil, nil, nil, 0, 0
	c.group, c.extents = nil, nil
}

// grow changes a small workspace for a large one, if there is memory for it or it
// must be had.
func (c *conn) grow(must bool) {
	if c.ws.piece == largePiece || !c.s.take(largeWorkspace, must) {
		return
	}
	in, out, small := c.in[c.r:c.w], c.out, c.ws
	c.use(largePool.Get().(*workspace))
	c.w = copy(c.in, in)
	c.out = append(c.out, out...)
	smallPool.Put(small)
}
