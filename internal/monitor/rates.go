package monitor

// Rates is what an export did in a while.
type Rates struct {
	Read        Rate    `json:"read"`
	Write       Rate    `json:"write"`
	Other       Rate    `json:"other"`
	Errors      float64 `json:"errors_per_second"`
	GroupBlocks float64 `json:"blocks_per_group"` // on average; 0: no group
	LaneWaits   float64 `json:"lane_waits_per_second"`
	RTTWaits    float64 `json:"rtt_waits_per_second"`
}

// Rate is that of some kinds of requests. The percentiles are 0 where none was answered.
type Rate struct {
	Requests float64 `json:"per_second"`
	Bytes    float64 `json:"bytes_per_second"`
	P50      float64 `json:"p50_seconds"`
	P90      float64 `json:"p90_seconds"`
	P99      float64 `json:"p99_seconds"`
}

// Compare fills Window and Recent in: what has happened since older, a Status of the
// same server.
func (s *Status) Compare(older *Status) {
	s.Window = s.Now.Sub(older.Now).Seconds()
	before := map[string]*Export{}
	for i := range older.Exports {
		before[older.Exports[i].Name] = &older.Exports[i]
	}
	for i := range s.Exports {
		was := before[s.Exports[i].Name]
		if was == nil {
			was = &Export{}
		}
		s.Exports[i].Recent = s.Exports[i].since(was, s.Window, s.Bounds)
	}
}

func (e *Export) since(was *Export, seconds float64, bounds []float64) (r Rates) {
	if seconds <= 0 {
		return r
	}
	names := map[string][]string{"read": {"read"}, "write": {"write"}}
	for _, c := range e.Commands {
		if c.Name != "read" && c.Name != "write" {
			names["other"] = append(names["other"], c.Name)
		}
	}
	rate := func(kind string) Rate { return e.rate(was, names[kind], seconds, bounds) }
	r.Read, r.Write, r.Other = rate("read"), rate("write"), rate("other")
	r.Errors = float64(more(e.ErrorReplies(), was.ErrorReplies())) / seconds
	if e.Blocks == nil {
		return r
	}
	old := was.Blocks
	if old == nil {
		old = &Blocks{}
	}
	groups := uint64(0)
	for i, n := range e.Blocks.Groups {
		groups += more(n, old.Groups[i])
	}
	if groups > 0 {
		r.GroupBlocks = float64(more(e.Blocks.Written, old.Written)) / float64(groups)
	}
	r.LaneWaits = float64(more(e.Blocks.LaneWaits, old.LaneWaits)) / seconds
	r.RTTWaits = float64(more(e.Blocks.RTTWaits, old.RTTWaits)) / seconds
	return r
}

// rate is that of the named commands together.
func (e *Export) rate(was *Export, names []string, seconds float64, bounds []float64) (r Rate) {
	buckets := make([]uint64, len(bounds)+1)
	for _, name := range names {
		now, old := e.Command(name), was.Command(name)
		r.Requests += float64(more(now.Requests, old.Requests)) / seconds
		r.Bytes += float64(more(now.Bytes, old.Bytes)) / seconds
		for i := range min(len(buckets), len(now.Buckets)) {
			n := now.Buckets[i]
			if i < len(old.Buckets) {
				n = more(n, old.Buckets[i])
			}
			buckets[i] += n
		}
	}
	r.P50, r.P90, r.P99 = Quantile(0.5, buckets, bounds), Quantile(0.9, buckets, bounds), Quantile(0.99, buckets, bounds)
	return r
}

// more is now - was; all of now if the counter has begun anew, as that of an image
// that was opened again.
func more(now, was uint64) uint64 {
	if now < was {
		return now
	}
	return now - was
}

// Quantile is the value below which the fraction q of what buckets count lies, as if
// spread evenly inside each bucket. The last bucket has no bound: what lies there
// counts as the last bound. It is 0 for empty buckets.
func Quantile(q float64, buckets []uint64, bounds []float64) float64 {
	total := uint64(0)
	for _, n := range buckets {
		total += n
	}
	if total == 0 {
		return 0
	}
	rank, below := q*float64(total), 0.0
	for i, n := range buckets {
		if i == len(bounds) {
			break
		}
		if below+float64(n) >= rank && n > 0 {
			low := 0.0
			if i > 0 {
				low = bounds[i-1]
			}
			return low + (bounds[i]-low)*(rank-below)/float64(n)
		}
		below += float64(n)
	}
	return bounds[len(bounds)-1]
}
