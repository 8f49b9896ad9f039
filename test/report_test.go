package clienttest

import (
	pixels "image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The colours of the report in the light, from internal/report/style.css.
var (
	reportRed   = color.RGBA{0xc6, 0x28, 0x28, 0xff}
	reportGreen = color.RGBA{0x2e, 0x7d, 0x4f, 0xff}
	reportFlog  = color.RGBA{0xb5, 0x62, 0x2a, 0xff}
)

// Goal: a browser shows what --html and --svg draw: the verdict in its colour, and the
// parts of the medium where they are. The pictures stay where BTTNBD_SCREENSHOTS says,
// for people to look at.
func TestReportInBrowser(t *testing.T) {
	need(t, "chromium")
	dir := t.TempDir()
	pictures := os.Getenv("BTTNBD_SCREENSHOTS")
	if pictures == "" {
		pictures = dir
	}
	disk := filepath.Join(dir, "<script>document.title='run'.img")
	run(t, bttnbd, "create", "--size", "32M", disk)
	for _, c := range []struct {
		name    string
		status  int
		verdict color.RGBA
		none    color.RGBA
	}{{"clean", 0, reportGreen, reportRed}, {"damaged", 4, reportRed, reportGreen}} {
		html, svg := filepath.Join(dir, c.name+".html"), filepath.Join(dir, c.name+".svg")
		if o := try(t, bttcheck, "--html", html, "--svg", svg, disk); o.status != c.status {
			t.Fatalf("%s: exit status %d: %s", c.name, o.status, o.stderr)
		}
		dom := chromium(t, "--dump-dom", "file://"+html)
		if strings.Contains(dom, "<script") || !strings.Contains(dom, "&lt;script&gt;document.title") {
			t.Errorf("%s: the name of the image is not text on the page:\n%s", c.name, dom)
		}
		page := screenshot(t, html, filepath.Join(pictures, "report-"+c.name+".png"), "1040,1500")
		screenshot(t, html, filepath.Join(pictures, "report-"+c.name+"-narrow.png"), "500,2200")
		picture := screenshot(t, svg, filepath.Join(pictures, "report-"+c.name+"-svg.png"), "992,520")
		for what, img := range map[string]pixels.Image{"page": page, "picture": picture} {
			verdict := pixels.Rect(0, 0, img.Bounds().Dx(), 50) // above all that has other colours
			if what == "page" {
				verdict = pixels.Rect(40, 40, img.Bounds().Dx(), 90)
			}
			if !has(img, verdict, c.verdict) || has(img, verdict, c.none) {
				t.Errorf("%s: the verdict on the %s has not its colour", c.name, what)
			}
		}
		// The third bar, of which the flog is the first 16 KiB of 20, in a picture with a
		// margin of 16 to the left and 70 above.
		for x, want := range map[int]bool{16 + 100: true, 16 + 960*4/5 - 5: true, 16 + 960*4/5 + 5: false} {
			if is := picture.At(x, 70+253) == color.Color(reportFlog); is != want {
				t.Errorf("%s: at %d the picture has the flog: %v", c.name, x, is)
			}
		}
		poke(t, disk, 33501184, 0xff, 0xff, 0xff, 0xff) // map entry 0 names no block
	}
}

func poke(t *testing.T, path string, off int64, b ...byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// screenshot is what the browser shows of a file, kept at path.
func screenshot(t *testing.T, file, path, size string) pixels.Image {
	t.Helper()
	chromium(t, "--hide-scrollbars", "--force-device-scale-factor=1", "--window-size="+size, "--screenshot="+path, "file://"+file)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return img
}

// has reports whether a part of a picture has a colour anywhere.
func has(img pixels.Image, part pixels.Rectangle, c color.RGBA) bool {
	for y := part.Min.Y; y < part.Max.Y; y++ {
		for x := part.Min.X; x < part.Max.X; x++ {
			if color.RGBAModel.Convert(img.At(x, y)) == c {
				return true
			}
		}
	}
	return false
}
