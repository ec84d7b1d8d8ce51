// Classify a photograph on a Mac: swift classify.swift model.mlpackage photo.jpg
import CoreML
import Vision

let package = URL(fileURLWithPath: CommandLine.arguments[1]), photo = URL(fileURLWithPath: CommandLine.arguments[2])
let model = try MLModel(contentsOf: MLModel.compileModel(at: package))
let request = VNCoreMLRequest(model: try VNCoreMLModel(for: model))
request.imageCropAndScaleOption = .centerCrop
try VNImageRequestHandler(url: photo).perform([request])
for answer in request.results!.compactMap({ $0 as? VNClassificationObservation }).prefix(5) { print(answer.identifier, answer.confidence) }
