package monitor

import (
	"runtime"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/bttnbd/bttnbd/btt"
)

// Metrics are named by the conventions of Prometheus: base units, _total for what
// only grows. They are made of one Status a scrape, so that they fit each other.

// registry has everything that /metrics shows.
func (m *Monitor) registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(m, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

const namespace = "bttnbd_"

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(namespace+name, help, labels, nil)
}

var (
	buildInfo = describe("build_info", "1, with what this program is.", "version", "revision", "goversion")
	healthy   = describe("healthy", "1 while every export serves, 0 otherwise.")

	startTime = describe("start_time_seconds", "When the server started, in seconds of Unix time.")

	connections = describe("connections", "Open connections, those in their handshake included.")
	accepted    = describe("connections_accepted_total", "Connections accepted.")
	refused     = describe("connections_refused_total", "Connections closed because there were too many.")
	negotiated  = describe("connections_negotiated_total", "Connections that have chosen an export.")
	buffers     = describe("buffer_bytes", "Large buffers of connections in use.")
	maxBuffers  = describe("buffer_limit_bytes", "What large buffers may be in use, --max-memory.")

	exportInfo        = describe("export_info", "1, with what the export is.", "export", "path", "device", "format", "sector_size", "durability", "read_only")
	exportSize        = describe("export_size_bytes", "Size of the export.", "export")
	exportConnections = describe("export_connections", "Connections that use the export.", "export")
	requests          = describe("requests_total", "Requests received.", "export", "command")
	bytes             = describe("request_bytes_total", "Lengths of requests that succeeded.", "export", "command")
	duration          = describe("request_duration_seconds", "Time from a request's arrival until its reply was ready to be sent.", "export", "command")
	failures          = describe("request_errors_total", "Error replies, by the error they gave.", "export", "errno")

	blocksRead    = describe("blocks_read_total", "Blocks read.", "export")
	blocksWritten = describe("blocks_written_total", "Blocks written.", "export")
	blocksMarked  = describe("blocks_marked_total", "Blocks made zero or error entries of the map.", "export")
	partWrites    = describe("part_writes_total", "Blocks written of which only a part was asked for: read, changed, written.", "export")
	groupBlocks   = describe("group_blocks", "Blocks that were committed together, with three drains.", "export")
	drains        = describe("drains_total", "Drains: fences on memory, msync behind the page cache.", "export")
	msyncs        = describe("msyncs_total", "Calls of msync, which drains share.", "export")
	msyncBytes    = describe("msync_bytes_total", "Bytes handed to msync, clean pages included.", "export")
	laneWaits     = describe("lane_waits_total", "Writers that found no lane free.", "export")
	rttWaits      = describe("rtt_waits_total", "Writers that found their free block being read.", "export")
	recovered     = describe("recovered_lanes", "Interrupted writes that were completed when the image was opened.", "export")
	retired       = describe("retired_lanes", "Lanes out of use: their free blocks are bad memory.", "export")
	arenas        = describe("arenas", "Arenas of the image.", "export")
	failedArenas  = describe("failed_arenas", "Arenas that take no writes.", "export")
)

// Describe is that of a [prometheus.Collector].
func (m *Monitor) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		buildInfo, healthy, startTime, connections, accepted, refused, negotiated, buffers, maxBuffers,
		exportInfo, exportSize, exportConnections, requests, bytes, duration, failures,
		blocksRead, blocksWritten, blocksMarked, partWrites, groupBlocks, drains, msyncs, msyncBytes,
		laneWaits, rttWaits, recovered, retired, arenas, failedArenas,
	} {
		to <- d
	}
}

// Collect is that of a [prometheus.Collector].
func (m *Monitor) Collect(to chan<- prometheus.Metric) {
	s := m.look()
	c := collection{to}
	c.gauge(buildInfo, 1, m.o.Version, m.o.Revision, runtime.Version())
	c.gauge(healthy, boolean(s.Healthy))
	c.gauge(startTime, float64(s.Started.UnixMilli())/1e3)
	c.gauge(connections, float64(s.Server.Connections))
	c.counter(accepted, s.Server.Accepted)
	c.counter(refused, s.Server.Refused)
	c.counter(negotiated, s.Server.Negotiated)
	c.gauge(buffers, float64(s.Server.Buffers))
	c.gauge(maxBuffers, float64(s.Server.MaxBuffers))
	for i := range s.Exports {
		c.export(&s.Exports[i])
	}
}

// collection takes metrics.
type collection struct{ to chan<- prometheus.Metric }

func (c collection) gauge(d *prometheus.Desc, v float64, labels ...string) {
	c.to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (c collection) counter(d *prometheus.Desc, v uint64, labels ...string) {
	c.to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

func (c collection) export(e *Export) {
	name := e.Name
	c.gauge(exportInfo, 1, name, e.Path, e.Device, e.Format, strconv.Itoa(int(e.SectorSize)), e.Durability, strconv.FormatBool(e.ReadOnly))
	c.gauge(exportSize, float64(e.Size), name)
	c.gauge(exportConnections, float64(e.Connections), name)
	for _, k := range e.Commands {
		c.counter(requests, k.Requests, name, k.Name)
		c.counter(bytes, k.Bytes, name, k.Name)
		c.duration(k, name)
	}
	for errno, n := range e.Errors {
		c.counter(failures, n, name, errno)
	}
	if b := e.Blocks; b != nil {
		c.blocks(b, name)
		c.gauge(arenas, float64(e.Arenas), name)
	}
}

func (c collection) blocks(b *Blocks, name string) {
	c.counter(blocksRead, b.Read, name)
	c.counter(blocksWritten, b.Written, name)
	c.counter(blocksMarked, b.Marked, name)
	c.counter(partWrites, b.Parts, name)
	c.counter(drains, b.Drains, name)
	c.counter(msyncs, b.Syncs, name)
	c.counter(msyncBytes, b.SyncBytes, name)
	c.counter(laneWaits, b.LaneWaits, name)
	c.counter(rttWaits, b.RTTWaits, name)
	c.gauge(recovered, float64(b.Recovered), name)
	c.gauge(retired, float64(b.Retired), name)
	c.gauge(failedArenas, float64(b.FailedArenas), name)

	sizes, count := map[float64]uint64{}, uint64(0)
	for i := range btt.GroupSizes {
		count += b.Groups[i]
		sizes[float64(uint(1)<<i)] = count
	}
	c.to <- prometheus.MustNewConstHistogram(groupBlocks, count, float64(b.Written), sizes, name)
}

// duration shows every second bound, the powers of two: half of the series, and
// still finer than what anybody is woken up for.
func (c collection) duration(k Command, name string) {
	if len(k.Buckets) != len(bounds)+1 {
		k.Buckets = make([]uint64, len(bounds)+1)
	}
	buckets, count := map[float64]uint64{}, uint64(0)
	for i, n := range k.Buckets {
		count += n
		if i < len(bounds) && i%2 == 0 {
			buckets[bounds[i]] = count
		}
	}
	c.to <- prometheus.MustNewConstHistogram(duration, count, k.Seconds, buckets, name, k.Name)
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
