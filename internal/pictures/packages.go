package main

import (
	"fmt"
	"maps"
	"os/exec"
	"path"
	"slices"
	"strings"

	"github.com/bttnbd/bttnbd/internal/lint"
)

// The commands, and what joins the rest for them.
const joint = "internal/cli"

var commands = []string{"cmd/bttnbd", "cmd/bttcheck"}

// drawPackages draws the packages that are linked into the programs, with the arrows
// of the table that the lint holds. An arrow that two others make anyway is left out.
func drawPackages(source string) ([]byte, error) {
	list := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{if .Main}}{{$.ImportPath}}{{end}}{{end}}", "./cmd/...")
	list.Dir = source
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	all := lint.Arrows()
	shipped := map[string][]string{}
	for _, p := range strings.Fields(string(out)) {
		p = strings.SplitN(p, "/", 4)[3] // behind the path of the module
		if p != joint && !slices.Contains(commands, p) {
			shipped[p] = all[p]
		}
	}
	return drawGraph(levels(reduce(shipped)), reduce(shipped)), nil
}

// reduce leaves out arrows to what is reached by another arrow as well.
func reduce(graph map[string][]string) map[string][]string {
	reduced := map[string][]string{}
	for p, imports := range graph {
		reduced[p] = slices.DeleteFunc(slices.Clone(imports), func(q string) bool {
			return slices.ContainsFunc(imports, func(via string) bool { return via != q && reaches(graph, via, q) })
		})
	}
	return reduced
}

func reaches(graph map[string][]string, from, to string) bool {
	return from == to || slices.ContainsFunc(graph[from], func(next string) bool { return reaches(graph, next, to) })
}

// levels puts each package above all that it imports, as low as can be, and beside
// those that it shares arrows with.
func levels(graph map[string][]string) [][]string {
	depth := map[string]int{}
	var measure func(p string) int
	measure = func(p string) int {
		d := 0
		for _, q := range graph[p] {
			d = max(d, measure(q)+1)
		}
		depth[p] = d
		return d
	}
	var rows [][]string
	for _, p := range slices.Sorted(maps.Keys(graph)) {
		for d := measure(p); len(rows) <= d; {
			rows = append(rows, nil)
		}
		rows[depth[p]] = append(rows[depth[p]], p)
	}
	for shorter := true; shorter; {
		shorter = false
		for _, row := range rows {
			shorter = swap(row, rows, graph) || shorter
		}
	}
	return rows
}

// swap changes the places of two packages in a row if that makes the arrows shorter.
func swap(row []string, rows [][]string, graph map[string][]string) (shorter bool) {
	for i := range row {
		for j := range i {
			before := span(rows, graph)
			row[i], row[j] = row[j], row[i]
			if span(rows, graph) < before {
				shorter = true
			} else {
				row[i], row[j] = row[j], row[i]
			}
		}
	}
	return shorter
}

// span is how far all arrows go to the side, squared, in thousandths of the width.
func span(rows [][]string, graph map[string][]string) (sum int) {
	place := map[string]int{}
	for _, row := range rows {
		for i, p := range row {
			place[p] = (2*i + 1) * 500 / len(row)
		}
	}
	for p, imports := range graph {
		for _, q := range imports {
			sum += (place[p] - place[q]) * (place[p] - place[q])
		}
	}
	return sum
}

// drawGraph draws the rows upwards, and above them what imports them all.
func drawGraph(rows [][]string, graph map[string][]string) []byte {
	const width, left, h, step = 940, 20, 34, 84
	height := 150 + len(rows)*step + 4
	c := newCanvas(width, height, "Packages and their imports", "Arrows are imports, from the commands down to the format and the memory.")
	for i, p := range commands {
		c.box(width/2-200+i*220, 20, 180, h, "box", p)
		c.path(true, "M%d %dV%d", width/2-110+i*220, 20+h, 86)
	}
	c.box(left, 88, width-2*left, h, "box", joint+": joins all that is below")
	at := map[string][2]int{} // the middle of the upper edge
	for d, row := range rows {
		y := 150 + (len(rows)-1-d)*step
		slot := (width - 2*left) / len(row)
		for i, p := range row {
			at[p] = [2]int{left + i*slot + slot/2, y}
		}
	}
	for _, p := range slices.Sorted(maps.Keys(graph)) {
		for _, q := range slices.Sorted(slices.Values(graph[p])) {
			from, to := at[p], at[q]
			bend := (to[1] - from[1] - h) / 2
			c.path(true, "M%d %dC%d %d %d %d %d %d", from[0], from[1]+h, from[0], from[1]+h+bend, to[0], to[1]-bend, to[0], to[1]-2)
		}
	}
	for _, p := range slices.Sorted(maps.Keys(at)) {
		class, name := "box", path.Base(p)
		if !strings.HasPrefix(p, "internal/") {
			class, name = "data", p
		}
		w := min(130, (width-2*left)/longest(rows)-8)
		c.box(at[p][0]-w/2, at[p][1], w, h, class, name)
	}
	c.text(left, height-16, "dim", "Blue: packages for others, too; grey: internal/. An arrow that others imply is left out. check never imports btt, nbd never a BTT.")
	return c.bytes()
}

func longest(rows [][]string) (n int) {
	for _, row := range rows {
		n = max(n, len(row))
	}
	return n
}
