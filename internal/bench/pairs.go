package main

import (
	"fmt"
	"slices"
	"time"
)

// result is what the pairs of a row came to: medians, and the spread of the ratio.
// Of a row that failed it holds the names and why.
type result struct {
	Name      string      `json:"name"`
	Peer      string      `json:"peer"`
	Unit      string      `json:"unit"`
	Pairs     int         `json:"pairs"`
	Ours      measurement `json:"ours"`
	Theirs    measurement `json:"theirs"`
	Ratio     float64     `json:"ratio"`
	Low       float64     `json:"ratio_low"`
	High      float64     `json:"ratio_high"`
	Target    float64     `json:"target,omitempty"`
	RatioCPU  float64     `json:"ratio_cpu,omitempty"`
	TargetCPU float64     `json:"target_cpu,omitempty"`
	Error     string      `json:"error,omitempty"`
}

func (r result) String() string {
	if r.Error != "" {
		return fmt.Sprintf("%s against %s: FAILED: %s", r.Name, r.Peer, r.Error)
	}
	return fmt.Sprintf("%s against %s: %.2f (%.2f to %.2f)", r.Name, r.Peer, r.Ratio, r.Low, r.High)
}

// run measures the two sides in alternation; who goes first alternates too, so
// that neither always finds the caches as the other left them.
func (b bout) run(pairs int, d time.Duration) (result, error) {
	var s scope
	defer s.close()
	us, them, err := b.prepare(&s)
	if err != nil {
		return result{}, err
	}
	var ours, theirs []measurement
	for i := range pairs + 1 {
		first, second := &ours, &theirs
		a, c := us, them
		if i%2 == 1 {
			first, second, a, c = second, first, c, a
		}
		length := d
		if i == 0 {
			length = d / 4 // warms up, and is thrown away
		}
		for _, s := range []struct {
			side side
			into *[]measurement
		}{{a, first}, {c, second}} {
			m, err := s.side.measure(length)
			if err != nil {
				return result{}, err
			}
			if i > 0 {
				*s.into = append(*s.into, m)
			}
		}
	}
	return b.judge(ours, theirs), nil
}

func (b bout) judge(ours, theirs []measurement) result {
	r := result{
		Name: b.name, Peer: b.peer, Unit: b.unit, Pairs: len(ours), Target: b.target, TargetCPU: b.targetCPU,
		Ours: medians(ours), Theirs: medians(theirs),
	}
	var ratios, cpus []float64
	for i := range ours {
		ratios = append(ratios, ours[i].Rate/theirs[i].Rate)
		if theirs[i].CPU > 0 {
			cpus = append(cpus, ours[i].CPU/theirs[i].CPU)
		}
	}
	r.Ratio, r.Low, r.High = median(ratios), slices.Min(ratios), slices.Max(ratios)
	if len(cpus) > 0 {
		r.RatioCPU = median(cpus)
	}
	return r
}

// measure runs one measurement. Who does nothing at all in that time has no ratio to
// anybody.
func (s side) measure(d time.Duration) (measurement, error) {
	m, err := s(d)
	if err == nil && m.Rate == 0 {
		err = fmt.Errorf("nothing was done in %v", d)
	}
	return m, err
}

func medians(ms []measurement) measurement {
	var rates, cpus []float64
	for _, m := range ms {
		rates, cpus = append(rates, m.Rate), append(cpus, m.CPU)
	}
	return measurement{median(rates), median(cpus)}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// scope holds what is to be undone, last first.
type scope []func()

func (s *scope) later(f func()) { *s = append(*s, f) }

func (s *scope) close() {
	for _, f := range slices.Backward(*s) {
		f()
	}
	*s = nil
}
