package nbd

// MemoryInUse is what of MaxMemory is taken.
func (s *Server) MemoryInUse() int64 { return s.memory.Load() }
