package main

import (
	"bytes"
	"fmt"
	"html"
)

// drawSVG draws each row as a bar of its ratio, the spread over the pairs as a
// thin line, the target as a mark, and the peer's 1.0 as a line through all.
func drawSVG(results []result) []byte {
	const rowHeight, labels, scale, width = 22, 430, 110, 980
	var b bytes.Buffer
	height := rowHeight*len(results) + 50
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="10" y="18">bttnbd against its peers: ratio of rates, median of pairs (line: spread; mark: target)</text>`+"\n")
	x := func(v float64) float64 { return labels + min(v, 4.8)*scale }
	for i, r := range results {
		y := 30 + i*rowHeight
		fill := "#4a7ab5"
		if r.Target > 0 && r.Ratio < r.Target {
			fill = "#c98f3c"
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s / %s</text>`+"\n", labels-8, y+15, html.EscapeString(r.Name), html.EscapeString(r.Peer))
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.0f" height="14" fill="%s"/>`+"\n", labels, y+4, x(r.Ratio)-labels, fill)
		fmt.Fprintf(&b, `<line x1="%.0f" x2="%.0f" y1="%d" y2="%d" stroke="black"/>`+"\n", x(r.Low), x(r.High), y+11, y+11)
		if r.Target > 0 {
			fmt.Fprintf(&b, `<line x1="%.0f" x2="%.0f" y1="%d" y2="%d" stroke="#b03030" stroke-width="2"/>`+"\n", x(r.Target), x(r.Target), y+2, y+20)
		}
		fmt.Fprintf(&b, `<text x="%.0f" y="%d">%.2f</text>`+"\n", x(max(r.Ratio, r.High))+6, y+15, r.Ratio)
	}
	fmt.Fprintf(&b, `<line x1="%.0f" x2="%.0f" y1="26" y2="%d" stroke="gray" stroke-dasharray="3 3"/>`+"\n", x(1), x(1), height-12)
	b.WriteString("</svg>\n")
	return b.Bytes()
}
