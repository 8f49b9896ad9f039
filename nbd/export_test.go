package nbd

// MemoryInUse is what of MaxMemory is taken.
func (s *Server) MemoryInUse() int64 { return s.memory.Load() }

// HandshakeMemory is the most of it that handshakes take together.
const HandshakeMemory = maxLongOptions * maxOptionData
