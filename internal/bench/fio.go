package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"strconv"
	"time"
)

// fio is a side of which fio, through libnbd, is the client.
func (s *server) fio(mode string, depth int) side {
	return func(d time.Duration) (m measurement, err error) {
		before, err := s.cpu()
		if err != nil {
			return m, fmt.Errorf("%s is gone: %w", s.cmd.Path, err)
		}
		out, err := exec.Command("fio", "--name=bench", "--ioengine=nbd", "--uri=nbd+unix:///?socket="+s.socket,
			"--rw="+mode, "--bs=4k", "--iodepth="+strconv.Itoa(depth), "--time_based", fmt.Sprintf("--runtime=%dms", d.Milliseconds()),
			"--output-format=json").Output()
		if err != nil {
			return m, fmt.Errorf("fio: %w", err)
		}
		after, err := s.cpu()
		if err != nil {
			return m, err
		}
		var report struct {
			Jobs []struct {
				Read, Write struct {
					IOPS  float64 `json:"iops"`
					Total float64 `json:"total_ios"`
				}
			}
		}
		out = out[max(bytes.IndexByte(out, '{'), 0):] // its NBD engine greets on stdout
		if err := json.Unmarshal(out, &report); err != nil {
			return m, fmt.Errorf("fio: its report: %w", err)
		}
		if len(report.Jobs) != 1 {
			return m, fmt.Errorf("fio: its report has %d jobs, not one", len(report.Jobs))
		}
		j := report.Jobs[0]
		total := j.Read.Total + j.Write.Total
		return measurement{Rate: j.Read.IOPS + j.Write.IOPS, CPU: (after - before) / total}, nil
	}
}
