package main

import (
	"bytes"
	"fmt"
	"html"
	"strings"
)

// style has every colour twice, for light and for dark. The ground is drawn, so that a
// picture can be read on whatever it is put.
const style = `
.ground{fill:#ffffff;stroke:#d0d7de}
text{fill:#1f2328;font:13px system-ui,"Segoe UI",Helvetica,Arial,sans-serif}
.head{font-weight:600;font-size:15px}
.dim{fill:#59636e;font-size:12px}
.code{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:12px}
.middle{text-anchor:middle}.end{text-anchor:end}
.box{fill:#f6f8fa;stroke:#818b98}
.data{fill:#ddf4ff;stroke:#0969da}
.meta{fill:#dafbe1;stroke:#1a7f37}
.info{fill:#fff8c5;stroke:#9a6700}
.drain{fill:#cf222e}
.line{fill:none;stroke:#59636e;stroke-width:1.3}
.zoom{fill:#818b98;fill-opacity:.12}
.tip{fill:#59636e}
@media (prefers-color-scheme:dark){
.ground{fill:#0d1117;stroke:#3d444d}
text{fill:#f0f6fc}
.dim{fill:#9198a1}
.box{fill:#212830;stroke:#656c76}
.data{fill:#0c2d6b;stroke:#4493f8}
.meta{fill:#0f3d1c;stroke:#3fb950}
.info{fill:#4b2900;stroke:#d29922}
.drain{fill:#f85149}
.line{stroke:#9198a1}
.tip{fill:#9198a1}
}
`

// A canvas is a picture in the making. All measures are pixels, y goes down.
type canvas struct {
	b             bytes.Buffer
	width, height int
}

// newCanvas begins a picture. title and about are for those who cannot see it.
func newCanvas(width, height int, title, about string) *canvas {
	c := &canvas{width: width, height: height}
	c.add(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">`, width, height, width, height)
	c.add(`<!-- made by make pictures -->`)
	c.add(`<title>%s</title><desc>%s</desc>`, html.EscapeString(title), html.EscapeString(about))
	c.add(`<style>%s</style>`, strings.ReplaceAll(style, `"`, "'"))
	c.add(`<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto"><path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>`)
	c.add(`<rect class="ground" x=".5" y=".5" width="%d" height="%d" rx="6"/>`, width-1, height-1)
	return c
}

func (c *canvas) bytes() []byte {
	c.add("</svg>")
	return c.b.Bytes()
}

func (c *canvas) add(format string, args ...any) { fmt.Fprintf(&c.b, format+"\n", args...) }

// text begins at x, or is centred on it or ends there with the classes middle and end.
func (c *canvas) text(x, y int, class, s string) {
	c.add(`<text x="%d" y="%d" class="%s">%s</text>`, x, y, class, html.EscapeString(s))
}

const lineHeight = 17

// box is a rectangle with lines of text in its middle.
func (c *canvas) box(x, y, w, h int, class string, lines ...string) {
	c.add(`<rect class="%s" x="%d" y="%d" width="%d" height="%d" rx="3"/>`, class, x, y, w, h)
	for i, s := range lines {
		c.text(x+w/2, y+h/2+5+i*lineHeight-(len(lines)-1)*lineHeight/2, "middle", s)
	}
}

// lines are one below the other, the first on y.
func (c *canvas) lines(x, y int, class string, lines ...string) {
	for i, s := range lines {
		c.text(x, y+i*lineHeight, class, s)
	}
}

// path is a line as SVG writes it; with a tip it is an arrow.
func (c *canvas) path(tip bool, format string, args ...any) {
	marker := ""
	if tip {
		marker = ` marker-end="url(#tip)"`
	}
	c.add(`<path class="line" d="%s"%s/>`, fmt.Sprintf(format, args...), marker)
}

// zoom shades what lies between a part and the same part drawn larger below it.
func (c *canvas) zoom(x1, x2, y int, toX1, toX2, toY int) {
	c.add(`<path class="zoom" d="M%d %dL%d %dL%d %dL%d %dz"/>`, x1, y, x2, y, toX2, toY, toX1, toY)
}
