terraform {
  # plantimestamp() and terraform_data.
  required_version = ">= 1.5"
}
