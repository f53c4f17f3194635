import CoreML
import Foundation
import Hub
import Tokenizers

struct Model {
    let model: MLModel
    let tokenizer: any Tokenizer
    let length = 128

    /// `folder` has the package, and the tokenizer's files.
    init(folder: URL) async throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = .cpuAndNeuralEngine
        let package = folder.appending(path: "all-MiniLM-L6-v2.float16.mlpackage")
        let compiled = try await MLModel.compileModel(at: package)
        model = try MLModel(contentsOf: compiled, configuration: configuration)
        tokenizer = try await AutoTokenizer.from(modelFolder: folder)
    }

    /// The scores as they are, not probabilities.
    func callAsFunction(_ text: String) throws -> [Float] {
        let scores = try values(predict(encode(text)), "logits").scalars
        return scores
    }

    private func encode(_ text: String) -> [Int] {
        let tokens = tokenizer.encode(text: text)
        if tokens.count <= length { return tokens }
        return Array(tokens.prefix(length - 1)) + tokens.suffix(1)  // the closing token
    }

    private func predict(_ tokens: [Int]) throws -> MLFeatureProvider {
        func tensor(_ row: [Int], padding: Int = 0) -> MLFeatureValue {
            let padded = row + [Int](repeating: padding, count: length - row.count)
            let scalars = padded.map { Int32($0) }
            let array = MLShapedArray(scalars: scalars, shape: [1, length])
            return MLFeatureValue(shapedArray: array)
        }
        return try model.prediction(from: MLDictionaryFeatureProvider(dictionary: [
            "input_ids": tensor(tokens, padding: 0),
            "attention_mask": tensor(tokens.map { _ in 1 }),
            "token_type_ids": tensor([]),
        ]))
    }

    private func values(
        _ outputs: MLFeatureProvider, _ name: String
    ) -> MLShapedArray<Float> {
        MLShapedArray(converting: outputs.featureValue(for: name)!.multiArrayValue!)
    }
}

let revision = "v1"
let folder = try await HubApi.shared.snapshot(
    from: "my-org/all-MiniLM-L6-v2-ane", revision: revision,
    matching: ["*.json", "all-MiniLM-L6-v2.float16.mlpackage/*"])
let model = try await Model(folder: folder)
print(try model("This is the best film I have seen in years."))
