/*
 * Shows a heatmap and its lesions on the slide that is open in QuPath.
 *
 *     wsi-meta export NAME.zarr --out NAME.ome.tif
 *     wsi-meta export NAME.zarr --out NAME.geojson
 *
 * Set `folder`, open the slide NAME in QuPath, and run this in the script editor. The map is an overlay (show and hide it with
 * the button for pixel classification); lesions are annotations of class Tumor. Written by the documented interface of QuPath
 * 0.5 and 0.6; it has not been run in either. Research use only.
 */

import groovy.json.JsonSlurper
import java.awt.image.BufferedImage
import qupath.lib.gui.viewer.overlays.BufferedImageOverlay
import qupath.lib.images.servers.ImageServerProvider
import qupath.lib.regions.ImageRegion
import qupath.lib.regions.RegionRequest
import static qupath.lib.gui.scripting.QPEx.*

def folder = "/path/to/exports"
def opacity = 0.7 // of probability 1; a value of 0 is transparent, as in wsi-meta overlay

// matplotlib's viridis from 0 to 1 in steps of an eighth
def stops = [0x440154, 0x472d7b, 0x3b528b, 0x2c728e, 0x21918c, 0x28ae80, 0x5ec962, 0xaddc30, 0xfde725]

def slide = getCurrentServer()
def name = GeneralTools.getNameWithoutExtension(slide.getMetadata().getName())
def lesions = new File(folder, name + ".geojson")
def mapFile = new File(folder, name + ".ome.tif")
for (file in [lesions, mapFile]) {
    if (!file.isFile()) {
        println file.toString() + ": no such file; write it with wsi-meta export, and set 'folder'"
        return
    }
}

// QuPath counts from the corner of what it shows of a slide, the map from the corner of level 0: the lesions' file knows both
def frame = new JsonSlurper().parse(lesions)["wsi_meta"]
def originX = frame?.origin_x ?: 0
def originY = frame?.origin_y ?: 0

def map = ImageServerProvider.buildServer(mapFile.toString(), BufferedImage)
def cellUm = map.getPixelCalibration().getPixelWidthMicrons()
def pixelUm = slide.getPixelCalibration().getPixelWidthMicrons()
def raster = map.readRegion(RegionRequest.createInstance(map)).getRaster()

def mix = { int from, int to, double share, int shift ->
    (int) Math.round(((from >> shift) & 255) * (1 - share) + ((to >> shift) & 255) * share) << shift
}
def picture = new BufferedImage(map.getWidth(), map.getHeight(), BufferedImage.TYPE_INT_ARGB)
for (int y = 0; y < map.getHeight(); y++) {
    for (int x = 0; x < map.getWidth(); x++) {
        double value = raster.getSampleDouble(x, y, 0)
        if (Double.isNaN(value)) {
            picture.setRGB(x, y, 0x809e9ea8 as int) // not scanned: grey, not "no tumor"
            continue
        }
        int step = Math.min(7, (int) (value * 8))
        double share = value * 8 - step
        int colour = [16, 8, 0].collect { mix(stops[step], stops[step + 1], share, it) }.sum()
        picture.setRGB(x, y, ((int) Math.round(255 * opacity * value) << 24) | colour)
    }
}

double perCell = cellUm / pixelUm
def region = ImageRegion.createInstance(
    -originX, -originY, (int) Math.round(map.getWidth() * perCell), (int) Math.round(map.getHeight() * perCell), 0, 0)
def viewer = getCurrentViewer()
viewer.setCustomPixelLayerOverlay(new BufferedImageOverlay(viewer.getOverlayOptions(), region, picture))

importObjectsFromFile(lesions.toString())
println "Shown: " + name + ", a cell is " + perCell + " pixels; lesions: " + getAnnotationObjects().size()
