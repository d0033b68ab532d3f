/*
 * Puts a slide and its lesions into a QuPath project. Written by wsi-meta; research use only.
 *
 *     wsi-meta export HEATMAP --out {{ lesions | comment }}      beside this file
 *     QuPath script {{ script | comment }}                       or run it in QuPath's script editor
 *
 * The project is the one that is open, else the one in `projectFolder`, which is made where there is none. Run again, this replaces
 * the lesions that it added and leaves all else. Written by the documented interface of QuPath 0.5 and 0.6; it has not been run there.
 */

import java.awt.image.BufferedImage
import qupath.lib.images.ImageData
import qupath.lib.images.servers.ImageServerProvider
import qupath.lib.io.PathIO
import qupath.lib.projects.ProjectIO
import qupath.lib.projects.Projects
import static qupath.lib.scripting.QP.*

def slide = new File({{ slide | literal }})
def lesions = new File({{ folder | literal }}, {{ lesions | literal }})
def projectFolder = new File({{ folder | literal }}, "qupath")
def description = {{ description | literal }}

for (file in [slide, lesions]) {
    if (!file.exists()) {
        println file.toString() + ": no such file; see the head of this script"
        return
    }
}

def project = getProject()
if (project == null) {
    def projectFile = new File(projectFolder, "project.qpproj")
    projectFolder.mkdirs()
    project = projectFile.isFile() ? ProjectIO.loadProject(projectFile, BufferedImage) : Projects.createProject(projectFolder, BufferedImage)
}

def entry = project.getImageList().find { known -> known.getURIs().any { it == slide.toURI() || it == slide.toPath().toUri() } }
if (entry == null) {
    def support = ImageServerProvider.getPreferredUriImageSupport(BufferedImage, slide.toURI().toString())
    if (support == null) {
        println slide.toString() + ": QuPath cannot read it"
        return
    }
    entry = project.addImage(support.getBuilders().get(0))
    entry.setImageName(slide.getName())
}
entry.setDescription(description)

def imageData = entry.readImageData()
imageData.setImageType(ImageData.ImageType.BRIGHTFIELD_H_E)
def hierarchy = imageData.getHierarchy()
def earlier = hierarchy.getAnnotationObjects().findAll { it.getMeasurements().containsKey({{ mark | literal }}) }
hierarchy.removeObjects(earlier, true)
hierarchy.addObjects(PathIO.readObjects(lesions))
entry.saveImageData(imageData)
project.syncChanges()
println slide.getName() + ": " + hierarchy.getAnnotationObjects().size() + " annotations in " + project.getPath()
