package main

import (
	"bytes"
	"fmt"
	"html"
)

// The picture, in pixels: a row for each result, groups under a heading.
//
//	what against whom  |0 ....... 1 ....... 2 ...  ratio, CPU ratio
//	       labels               scale each                notes
const (
	svgRow    = 20
	svgLabels = 440
	svgScale  = 75 // a ratio of 1
	svgMost   = 6  // ratios beyond end there
	svgNotes  = svgLabels + svgMost*svgScale + 10
	svgWidth  = svgNotes + 115
	svgTop    = 66
)

// drawSVG draws each row as a bar of its ratio, the spread over the pairs as a
// thin line, the target as a mark, and the peer's 1.0 as a line through all.
func drawSVG(r report) []byte {
	var b bytes.Buffer
	rows := 0
	for _, row := range r.Results {
		if row.Error == "" {
			rows++
		}
	}
	height := svgTop + rows*svgRow + 14
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="Helvetica, Arial, sans-serif" font-size="12">`+"\n", svgWidth, height, svgWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", svgWidth, height)
	text(&b, 12, 20, `font-size="15" font-weight="bold"`, "bttnbd beside its peers: times as fast (medians of pairs)")
	text(&b, 12, 38, `fill="#555"`, fmt.Sprintf("%s, %d cores, %s. Bar: ratio of rates. Thin line: spread. Red mark: target. Blue: reached, or none set; amber: missed.", r.Machine.CPU, r.Machine.Cores, r.When))
	for v := 0; v <= svgMost; v++ {
		colour := "#ddd"
		if v == 1 {
			colour = "#555"
		}
		line(&b, svgX(float64(v)), svgX(float64(v)), svgTop-4, float64(height-10), colour, 1)
		text(&b, svgX(float64(v)), svgTop-8, `text-anchor="middle" fill="#555"`, fmt.Sprint(v))
	}
	text(&b, svgNotes, svgTop-8, `fill="#555"`, "ratio")
	text(&b, svgNotes+50, svgTop-8, `fill="#555"`, "CPU ratio")
	y := float64(svgTop)
	for _, row := range r.Results {
		if row.Error == "" {
			drawRow(&b, row, y)
			y += svgRow
		}
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func drawRow(b *bytes.Buffer, r result, y float64) {
	fill := "#4a7ab5"
	if r.Target > 0 && r.Ratio < r.Target {
		fill = "#d9a441"
	}
	text(b, svgLabels-8, y+14, `text-anchor="end"`, r.Name+" / "+r.Peer)
	fmt.Fprintf(b, `<rect x="%d" y="%.0f" width="%.0f" height="12" fill="%s"/>`+"\n", svgLabels, y+4, svgX(r.Ratio)-svgLabels, fill)
	line(b, svgX(r.Low), svgX(r.High), y+10, y+10, "#222", 1)
	if r.Target > 0 {
		line(b, svgX(r.Target), svgX(r.Target), y+2, y+18, "#b03030", 2)
	}
	text(b, svgNotes, y+14, `font-weight="bold"`, fmt.Sprintf("%.2f", r.Ratio))
	text(b, svgNotes+50, y+14, `fill="#555"`, orDash(r.RatioCPU))
}

// svgX is where a ratio is.
func svgX(ratio float64) float64 { return svgLabels + min(ratio, svgMost)*svgScale }

func text(b *bytes.Buffer, x, y float64, attributes, s string) {
	fmt.Fprintf(b, `<text x="%.0f" y="%.0f" %s>%s</text>`+"\n", x, y, attributes, html.EscapeString(s))
}

func line(b *bytes.Buffer, x1, x2, y1, y2 float64, colour string, width int) {
	fmt.Fprintf(b, `<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="%s" stroke-width="%d"/>`+"\n", x1, x2, y1, y2, colour, width)
}
