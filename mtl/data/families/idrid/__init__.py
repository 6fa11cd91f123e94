"""IDRiD: lesions and grades of retinal photographs."""
