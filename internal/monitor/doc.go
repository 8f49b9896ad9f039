// Package monitor tells what a running server does: metrics for Prometheus, a
// status page for people, the same as JSON for `bttnbd top`, and whether all is
// well, over HTTP. It reads counters and changes nothing.
//
//	nbd.Server, btt.Device ── counters ──> Status ─┬─ /metrics      metrics.go
//	                                               ├─ /healthz      http.go, limits.go
//	                                               ├─ /status.json  status.go
//	                                               └─ /             page.go, page.html
package monitor
